//! What was measured, as Markdown: medians with the lowest and the highest, ratios of the same round, and whether what we want is so.

use serde_json::Value;

use crate::peers::Peer;
use crate::work::Content;
use crate::{fresh, loss, rates, restore};

const MEBIBYTE: f64 = 1_048_576.0;
const NAMES: [(&str, &str); 6] = [
    ("plain", "SQLite"),
    ("async", "replvfs, async"),
    ("remote", "replvfs, remote"),
    ("strict", "replvfs, strict"),
    ("litestream", "Litestream"),
    ("copy", "a copy of the file"),
];

fn name(peer: &str) -> &str {
    NAMES
        .iter()
        .find(|(known, _)| *known == peer)
        .map_or(peer, |(_, name)| name)
}

/// The runs of one peer, round by round.
type Runs<'a> = &'a [Value];

fn runs(of: &Value) -> Runs<'_> {
    of.as_array().map_or(&[], Vec::as_slice)
}

fn number(of: &Value) -> f64 {
    of.as_f64().unwrap_or(f64::NAN)
}

/// What comes of each round.
fn each(runs: Runs, what: impl Fn(&Value) -> f64) -> Vec<f64> {
    runs.iter().map(what).collect()
}

/// The same divided by that of another in the same round.
fn ratios(runs: Runs, others: Runs, what: impl Fn(&Value) -> f64) -> Vec<f64> {
    runs.iter()
        .zip(others)
        .map(|(one, other)| what(one) / what(other))
        .collect()
}

fn quantile(numbers: &[f64], part: f64) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    let last = numbers.len().saturating_sub(1);
    numbers
        .get((last as f64 * part).round() as usize)
        .copied()
        .unwrap_or(f64::NAN)
}

fn median(numbers: &[f64]) -> f64 {
    quantile(numbers, 0.5)
}

/// Digits enough, and no more.
fn short(number: f64) -> String {
    match number.abs() {
        size if size.is_nan() => "–".to_owned(),
        0.0 => "0".to_owned(),
        1_000_000.0.. => format!("{:.1} million", number / 1e6),
        10_000.0.. => {
            let whole = number.round() as i64;
            format!("{},{:03}", whole / 1000, whole.abs() % 1000)
        }
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

fn spread(numbers: &[f64]) -> String {
    let (low, high) = (quantile(numbers, 0.0), quantile(numbers, 1.0));
    match numbers.len() {
        0 => "–".to_owned(),
        1 => short(numbers[0]),
        _ => format!("{} ({} to {})", short(median(numbers)), short(low), short(high)),
    }
}

/// Something that is wanted, what came of it, and whether that will do.
struct Goal {
    wanted: String,
    found: Vec<f64>,
    is_met: bool,
}

impl Goal {
    fn at_least(wanted: &str, limit: f64, found: Vec<f64>) -> Goal {
        let is_met = median(&found) >= limit;
        Goal {
            wanted: wanted.to_owned(),
            found,
            is_met,
        }
    }

    fn at_most(wanted: &str, limit: f64, found: Vec<f64>) -> Goal {
        let is_met = median(&found) <= limit;
        Goal {
            wanted: wanted.to_owned(),
            found,
            is_met,
        }
    }
}

/// Prints what came of a part, and notes what was wanted of it.
type PrintPart = fn(&Value, &mut Vec<Goal>);

pub(crate) fn print(results: &Value) {
    let mut goals = Vec::new();
    print_summary(results);
    let tables: [(&str, PrintPart); 7] = [
        ("rates", print_rates),
        ("bytes", print_bytes),
        ("fresh", print_fresh),
        ("loss", print_loss),
        ("restore", print_restore),
        ("reads", print_reads),
        ("idle", print_idle),
    ];
    for (part, print) in tables {
        let of = &results[part];
        if of.is_null() {
            continue;
        }
        let machine = &of["machine"];
        println!(
            "\n### {part}\n\n{} cores of {}, Linux {}, SQLite {}, Litestream {}; {:.1} processes ran before; {:.0} s{}\n",
            machine["cores"],
            machine["cpu"].as_str().unwrap_or_default(),
            machine["kernel"].as_str().unwrap_or_default(),
            machine["sqlite"].as_str().unwrap_or_default(),
            machine["litestream"].as_str().unwrap_or_default(),
            number(&of["load before"]),
            number(&of["took"]),
            if of["short"] == true {
                "; SHORT, these numbers mean little"
            } else {
                ""
            }
        );
        print(&of["measured"], &mut goals);
    }
    println!("\n### goals\n\n| wanted | found | |\n|---|---|---|");
    for goal in goals {
        let is_met = if goal.is_met { "met" } else { "not met" };
        println!("| {} | {} | {is_met} |", goal.wanted, spread(&goal.found));
    }
}

/// A line of the summary: what it is, and how a peer's cell comes about; empty where it was not measured.
type Line<'a> = (&'static str, Box<dyn Fn(&str) -> String + 'a>);

/// All in one table, for the README at the top.
fn print_summary(results: &Value) {
    let of = |part: &str| results[part]["measured"].clone();
    let (rates, bytes, fresh, loss) = (of("rates"), of("bytes"), of("fresh"), of("loss"));
    let (restore, reads, idle) = (of("restore"), of("reads"), of("idle"));
    let numbers = |runs: &Value, what: &dyn Fn(&Value) -> f64| each(self::runs(runs), what);
    let cell = |numbers: &[f64]| {
        if numbers.is_empty() {
            String::new()
        } else {
            short(median(numbers))
        }
    };
    let pair = |numbers: &[f64]| match numbers.is_empty() {
        true => String::new(),
        false => format!("{}, {}", short(median(numbers)), short(quantile(numbers, 1.0))),
    };
    let beside_plain = |runs: &Value, plain: &Value, what: &dyn Fn(&Value) -> f64| {
        let ratio = spread(&ratios(self::runs(runs), self::runs(plain), what));
        if ratio == "–" { String::new() } else { ratio }
    };
    let of_loads = |load: &'static str, what: fn(&Value) -> f64| {
        let rates = &rates;
        move |peer: &str| beside_plain(&rates[load][peer], &rates[load]["plain"], &what)
    };
    let read = |run: &Value| number(&run["beside"]["reads"]) / number(&run["beside"]["seconds"]);
    let sent = |content: &'static str| {
        let bytes = &bytes;
        move |peer: &str| {
            cell(&numbers(&bytes[content][peer], &|run| {
                number(&run["bytes"]) / number(&run["rows"])
            }))
        }
    };
    let lines: Vec<Line> = vec![
        ("commits of a row, of SQLite's rate", Box::new(of_loads("small", rate))),
        (
            "commits of 1,000 rows, of SQLite's rate",
            Box::new(of_loads("batches", rate)),
        ),
        (
            "1,000 commits a second: p50 and p99, µs",
            Box::new(|peer| {
                let column = |key: &str| cell(&numbers(&rates["paced"][peer], &|run| number(&run[key])));
                format!("{}, {}", column("p50"), column("p99"))
            }),
        ),
        (
            "CPU of replication for a million commits, s",
            Box::new(|peer| {
                let pairs = runs(&rates["small"][peer]).iter().zip(runs(&rates["small"]["plain"]));
                let more: Vec<f64> = pairs.map(|(run, plain)| cpu(run) - cpu(plain)).collect();
                if peer == "plain" { String::new() } else { cell(&more) }
            }),
        ),
        (
            "the WAL meanwhile, MiB",
            Box::new(|peer| {
                cell(&numbers(&rates["small"][peer], &|run| {
                    number(&run["largest WAL"]) / MEBIBYTE
                }))
            }),
        ),
        (
            "reads beside a writer, of those of SQLite",
            Box::new(|peer| beside_plain(&reads[peer], &reads["plain"], &read)),
        ),
        ("bytes sent for a row of 200 bytes of text", Box::new(sent("text"))),
        ("the same, random bytes", Box::new(sent("random"))),
        (
            "a lone commit can be restored after, ms (store 20 ms away): median, worst",
            Box::new(|peer| pair(&numbers(&fresh["20"][peer], &number))),
        ),
        (
            "all killed, disk gone, at 1,000 rows a second: rows lost, median and worst",
            Box::new(|peer| pair(&numbers(&loss["paced"][peer], &|run| number(&run["lost"])))),
        ),
        (
            "the same at full rate",
            Box::new(|peer| pair(&numbers(&loss["full"][peer], &|run| number(&run["lost"])))),
        ),
        (
            "restore of 1 GiB, s",
            Box::new(|peer| cell(&numbers(&restore["snapshot"][peer], &|run| number(&run["seconds"])))),
        ),
        (
            "100 databases at rest: CPU s in a minute",
            Box::new(
                |peer| match number(&idle[peer]["CPU"]) / number(&idle[peer]["seconds"]) * 60.0 {
                    none if none.is_nan() => String::new(),
                    seconds => short(seconds),
                },
            ),
        ),
    ];
    println!(
        "### summary\n\n| | {} |\n|---|---|---|---|---|---|",
        Peer::ALL.map(|peer| name(peer.name())).join(" | ")
    );
    for (what, cell) in lines {
        println!("| {what} | {} |", Peer::ALL.map(|peer| cell(peer.name())).join(" | "));
    }
}

fn rate(run: &Value) -> f64 {
    number(&run["commits"]) / number(&run["seconds"])
}

/// Seconds of CPU for a million rows, of the writer and of who replicates beside it.
fn cpu(run: &Value) -> f64 {
    (number(&run["writer CPU"]) + number(&run["replicator CPU"])) / number(&run["rows"]) * 1e6
}

fn print_rates(measured: &Value, goals: &mut Vec<Goal>) {
    println!(
        "| load | | commits/s | of SQLite's | p50, µs | p99, µs | p99.9, µs | CPU s of replication for a million rows | all in the replica after, s | largest WAL, MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for load in rates::LOADS {
        let plain = runs(&measured[load]["plain"]);
        let replication = |peer: &str| {
            let own = runs(&measured[load][peer]).iter().zip(plain);
            own.map(|(run, plain)| cpu(run) - cpu(plain)).collect::<Vec<f64>>()
        };
        for peer in Peer::ALL {
            let own = runs(&measured[load][peer.name()]);
            let column = |key: &str| spread(&each(own, |run| number(&run[key])));
            let replicated = |text: String| if peer == Peer::Plain { String::new() } else { text };
            println!(
                "| {load} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                name(peer.name()),
                spread(&each(own, rate)),
                replicated(spread(&ratios(own, plain, rate))),
                column("p50"),
                column("p99"),
                column("p99.9"),
                replicated(spread(&replication(peer.name()))),
                replicated(column("catch up")),
                spread(&each(own, |run| number(&run["largest WAL"]) / MEBIBYTE)),
            );
        }
        let ours = runs(&measured[load]["async"]);
        if load != "paced" {
            let wanted = format!("{load} commits, async: at least 0.95 of SQLite's");
            goals.push(Goal::at_least(&wanted, 0.95, ratios(ours, plain, rate)));
        }
        let of_litestreams = replication("async")
            .iter()
            .zip(replication("litestream"))
            .map(|(own, other)| own / other)
            .collect();
        let wanted = format!("CPU of replication, {load} commits: at most half of Litestream's");
        goals.push(Goal::at_most(&wanted, 0.5, of_litestreams));
    }
}

fn print_bytes(measured: &Value, goals: &mut Vec<Goal>) {
    println!(
        "| rows of 200 bytes, 1,000 a second | | bytes sent for a row | of Litestream's | PUT a minute | LIST | GET, HEAD | DELETE |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let of_row = |run: &Value| number(&run["bytes"]) / number(&run["rows"]);
    for content in Content::ALL {
        let litestream = runs(&measured[content.name()]["litestream"]);
        for peer in ["async", "litestream"] {
            let own = runs(&measured[content.name()][peer]);
            let asked = |kinds: &[&str]| {
                let a_minute = |run: &Value| {
                    let requests: f64 = kinds.iter().map(|kind| number(&run["requests"][*kind])).sum();
                    requests / number(&run["seconds"]) * 60.0
                };
                spread(&each(own, a_minute))
            };
            println!(
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                content.name(),
                name(peer),
                spread(&each(own, of_row)),
                spread(&ratios(own, litestream, of_row)),
                asked(&["Put"]),
                asked(&["List"]),
                asked(&["Get", "Head"]),
                asked(&["Delete"]),
            );
        }
        print_objects(content.name(), &measured[content.name()]);
        let (limit, wanted) = match content {
            Content::Text => (0.6, "bytes sent, text: at most 0.6 of Litestream's"),
            Content::Random => (1.0, "bytes sent, random rows: at most Litestream's"),
        };
        let found = ratios(runs(&measured[content.name()]["async"]), litestream, of_row);
        goals.push(Goal::at_most(wanted, limit, found));
    }
}

/// What the bytes of the first round were, on standard error: it is not for the table.
fn print_objects(content: &str, measured: &Value) {
    for peer in ["async", "litestream"] {
        let objects = runs(&measured[peer]).first().map(|run| run["objects"].to_string());
        eprintln!("{content}, {peer}: {}", objects.unwrap_or_default());
    }
}

fn print_fresh(measured: &Value, goals: &mut Vec<Goal>) {
    println!(
        "| a request takes, ms | | commits | can be restored after, ms: median | 95 of 100 | worst |\n|---|---|---|---|---|---|"
    );
    for delay in fresh::DELAYS {
        for peer in ["async", "litestream"] {
            let waited = each(runs(&measured[delay.to_string()][peer]), number);
            println!(
                "| {delay} | {} | {} | {} | {} | {} |",
                name(peer),
                waited.len(),
                short(median(&waited)),
                short(quantile(&waited, 0.95)),
                short(quantile(&waited, 1.0)),
            );
        }
        let waited = each(runs(&measured[delay.to_string()]["async"]), number);
        let wanted = format!("a commit that comes alone can be restored after 50 ms and a request of {delay} ms");
        goals.push(Goal::at_most(&wanted, 50.0 + delay as f64, waited));
    }
}

fn print_loss(measured: &Value, goals: &mut Vec<Goal>) {
    println!("| load | | kills | rows lost | of so long, s | commits reported a run |\n|---|---|---|---|---|---|");
    for (load, _) in loss::LOADS {
        let seconds = |peer: &str| each(runs(&measured[load][peer]), |run| number(&run["seconds"]));
        let lost = |peer: &str| each(runs(&measured[load][peer]), |run| number(&run["lost"]));
        for peer in Peer::REPLICATED {
            let own = runs(&measured[load][peer.name()]);
            println!(
                "| {load} | {} | {} | {} | {} | {} |",
                name(peer.name()),
                own.len(),
                spread(&lost(peer.name())),
                spread(&seconds(peer.name())),
                spread(&each(own, |run| number(&run["reported"]))),
            );
        }
        for peer in ["remote", "strict"] {
            let worst = quantile(&lost(peer), 1.0);
            goals.push(Goal::at_most(
                &format!("rows lost with {peer}, {load}: none"),
                0.0,
                vec![worst],
            ));
        }
        // Moments are random: the sums are compared, not rounds.
        let sum = |numbers: Vec<f64>| numbers.iter().sum::<f64>();
        let found = vec![sum(lost("async")) / sum(lost("litestream"))];
        goals.push(Goal::at_most(
            &format!("rows lost with async, {load}: at most half of Litestream's"),
            0.5,
            found,
        ));
    }
}

fn print_restore(measured: &Value, goals: &mut Vec<Goal>) {
    println!("A database of {:.0} MiB.\n", number(&measured["bytes"]) / MEBIBYTE);
    println!("| replica | | s | times a copy | CPU s | most memory, MiB |\n|---|---|---|---|---|---|");
    let seconds = |run: &Value| number(&run["seconds"]);
    for kind in restore::KINDS {
        let copies = runs(&measured[kind]["copy"]);
        for peer in ["copy", "async", "litestream"] {
            let own = runs(&measured[kind][peer]);
            let is_copy = peer == "copy";
            let restored = |text: String| if is_copy { String::new() } else { text };
            println!(
                "| {kind} | {} | {} | {} | {} | {} |",
                if peer == "async" { "replvfs" } else { name(peer) },
                spread(&each(own, seconds)),
                restored(spread(&ratios(own, copies, seconds))),
                restored(spread(&each(own, |run| number(&run["cpu"])))),
                restored(spread(&each(own, |run| number(&run["memory"]) / MEBIBYTE))),
            );
        }
        let found = ratios(
            runs(&measured[kind]["litestream"]),
            runs(&measured[kind]["async"]),
            seconds,
        );
        goals.push(Goal::at_least(
            &format!("restore of 1 GiB, {kind}: at least 3 times as fast"),
            3.0,
            found,
        ));
    }
}

fn print_reads(measured: &Value, goals: &mut Vec<Goal>) {
    println!(
        "| | reads/s alone | of SQLite's | reads/s beside a writer | of SQLite's | that writer's commits/s | of SQLite's | largest WAL, MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let plain = runs(&measured["plain"]);
    let reads = |when: &'static str| move |run: &Value| number(&run[when]["reads"]) / number(&run[when]["seconds"]);
    let written = |run: &Value| rate(&run["written"]);
    for peer in ["plain", "async", "litestream"] {
        let own = runs(&measured[peer]);
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            name(peer),
            spread(&each(own, reads("alone"))),
            spread(&ratios(own, plain, reads("alone"))),
            spread(&each(own, reads("beside"))),
            spread(&ratios(own, plain, reads("beside"))),
            spread(&each(own, written)),
            spread(&ratios(own, plain, written)),
            spread(&each(own, |run| number(&run["largest WAL"]) / MEBIBYTE)),
        );
    }
    for (when, words) in [("alone", "alone"), ("beside", "beside a writer that never pauses")] {
        let found = ratios(runs(&measured["async"]), plain, reads(when));
        goals.push(Goal::at_least(
            &format!("reads {words}: at least 0.99 of SQLite's"),
            0.99,
            found,
        ));
    }
}

fn print_idle(measured: &Value, _: &mut Vec<Goal>) {
    println!("| 100 databases | CPU s in a minute | memory, MiB | requests in a minute |\n|---|---|---|---|");
    for peer in ["plain", "async", "litestream"] {
        let of = &measured[peer];
        let requests: f64 = of["requests"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, count)| number(count))
            .sum();
        let a_minute = 60.0 / number(&of["seconds"]);
        println!(
            "| {} | {:.2} | {:.0} | {:.0} |",
            name(peer),
            number(&of["CPU"]) * a_minute,
            number(&of["memory"]) / MEBIBYTE,
            requests * a_minute
        );
    }
}
