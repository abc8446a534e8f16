//! `replvfs check-config`: what is wrong with a configuration file, and what a database gets from it.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use replvfs::Config;
use replvfs::config::{Checked, Explained, FileError, Source, check_file};
use replvfs::format::Key;
use serde::Serialize;

use crate::Failure;

/// Checks a configuration file, and shows the settings of a database.
///
/// The file is read as a program with replvfs would read it, and everything that is wrong with it is told at once. With `--database`
/// also the settings that a database has whose URI says nothing, by the file and the environment, and where each comes from: credentials are not shown. The exit
/// code is 1 when something is wrong, and when that database is not replicated.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file; without it, that of `REPLVFS_CONFIG`.
    file: Option<PathBuf>,
    /// Shows what this database gets. It need not exist, and is not opened.
    #[arg(long, value_name = "PATH")]
    database: Option<PathBuf>,
    /// Asks the database's replica whether it is there: one request.
    #[arg(long, requires = "database")]
    store: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What `--json` prints. Fields are added, never changed.
#[derive(Serialize)]
struct Report {
    file: Option<String>,
    valid: bool,
    errors: Vec<ErrorReport>,
    tables: Vec<TableReport>,
    database: Option<DatabaseReport>,
}

#[derive(Serialize)]
struct ErrorReport {
    line: Option<usize>,
    column: Option<usize>,
    text: String,
}

#[derive(Serialize)]
struct TableReport {
    line: usize,
    path: String,
}

#[derive(Serialize)]
struct DatabaseReport {
    path: String,
    table: Option<TableReport>,
    /// `null` when it is not replicated.
    replica: Option<String>,
    settings: Vec<SettingReport>,
    /// When it was asked, or cannot be.
    store: Option<StoreReport>,
}

#[derive(Serialize)]
struct SettingReport {
    name: String,
    value: String,
    source: &'static str,
    /// Of the file.
    line: Option<usize>,
}

#[derive(Serialize)]
struct StoreReport {
    /// Also when there is nothing in it yet.
    reachable: bool,
    /// A history was begun in it.
    begun: bool,
    error: Option<String>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let variable = || std::env::var_os("REPLVFS_CONFIG").filter(|value| !value.is_empty());
    let file = arguments.file.clone().or_else(|| variable().map(PathBuf::from));
    if file.is_none() && arguments.database.is_none() {
        return Err("no file is named: name it, or set REPLVFS_CONFIG".into());
    }
    let checked = file.as_deref().map_or(Ok(Checked { tables: Vec::new() }), check_file);
    let report = match checked {
        Err(errors) => broken(file.as_deref(), &errors),
        Ok(checked) => {
            let mut report = valid(file.as_deref(), &checked);
            if let Some(database) = &arguments.database {
                let config = match &file {
                    Some(file) => Config::default().config_file(file),
                    None => Config::default(),
                };
                let database = std::path::absolute(database)?;
                let explained = config.explain(&database)?;
                let mut about = about(&database, &explained);
                about.store = ask(&explained, arguments.store).await;
                report.database = Some(about);
            }
            report
        }
    };
    let mut out = io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        print(&mut out, &report)?;
    }
    out.flush()?;
    Ok(if is_well(&report) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn is_well(report: &Report) -> bool {
    let database = report.database.as_ref();
    let replicated = database.is_none_or(|database| database.replica.is_some());
    let store = database.and_then(|database| database.store.as_ref());
    report.valid && replicated && store.is_none_or(|store| store.reachable)
}

fn shown(path: &Path) -> String {
    printable(&path.display().to_string())
}

/// Nothing of a name may move the terminal's cursor.
fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn broken(file: Option<&Path>, errors: &[FileError]) -> Report {
    let errors = errors.iter().map(|error| ErrorReport {
        line: error.position().map(|(line, _)| line),
        column: error.position().map(|(_, column)| column),
        text: printable(error.text()),
    });
    Report {
        file: file.map(shown),
        valid: false,
        errors: errors.collect(),
        tables: Vec::new(),
        database: None,
    }
}

fn valid(file: Option<&Path>, checked: &Checked) -> Report {
    let tables = checked.tables.iter().map(|table| TableReport {
        line: table.line,
        path: printable(&table.path),
    });
    Report {
        file: file.map(shown),
        valid: true,
        errors: Vec::new(),
        tables: tables.collect(),
        database: None,
    }
}

fn about(database: &Path, explained: &Explained) -> DatabaseReport {
    let settings = explained.settings.iter().map(|setting| {
        let (source, line) = match setting.source {
            Source::File(line) => ("file", Some(line)),
            Source::Environment => ("environment", None),
            Source::Program => ("program", None),
            _ => ("default", None),
        };
        SettingReport {
            name: printable(&setting.name),
            value: printable(&setting.value),
            source,
            line,
        }
    });
    DatabaseReport {
        path: shown(database),
        table: explained.table.as_ref().map(|table| TableReport {
            line: table.line,
            path: printable(&table.path),
        }),
        replica: explained.replica.as_deref().map(printable),
        settings: settings.collect(),
        store: None,
    }
}

/// Without a request only what is wrong with the replica's settings is known.
async fn ask(explained: &Explained, request: bool) -> Option<StoreReport> {
    match explained.open_store() {
        Ok(Some(store)) if request => Some(answer(store.has(&Key::Replica).await)),
        Ok(_) => None,
        Err(error) if error.is_not_found() && !request => None,
        Err(error) => Some(answer(Err(error))),
    }
}

fn answer(has: Result<bool, replvfs::store::StoreError>) -> StoreReport {
    match has {
        Ok(begun) => StoreReport {
            reachable: true,
            begun,
            error: None,
        },
        // A folder that is made when the database is opened.
        Err(error) if error.is_not_found() => StoreReport {
            reachable: true,
            begun: false,
            error: None,
        },
        Err(error) => StoreReport {
            reachable: false,
            begun: false,
            error: Some(printable(&error.to_string())),
        },
    }
}

fn print(out: &mut impl Write, report: &Report) -> io::Result<()> {
    if let Some(file) = &report.file {
        for error in &report.errors {
            let place = match (error.line, error.column) {
                (Some(line), Some(column)) => format!(":{line}:{column}"),
                _ => String::new(),
            };
            writeln!(out, "{file}{place}: {}", error.text)?;
        }
        if report.valid {
            let count = report.tables.len();
            let tables = if count == 1 { "table" } else { "tables" };
            writeln!(out, "{file}: no errors, {count} [[database]] {tables}")?;
        }
    }
    match &report.database {
        None => Ok(()),
        Some(database) => print_database(out, database),
    }
}

fn print_database(out: &mut impl Write, database: &DatabaseReport) -> io::Result<()> {
    match &database.table {
        Some(table) => writeln!(
            out,
            "{}: by the table of line {}, {}",
            database.path, table.line, table.path
        )?,
        None => writeln!(out, "{}: no table of a file is for it", database.path)?,
    }
    if database.replica.is_none() {
        return writeln!(out, "it is not replicated: no replica is set for it");
    }
    let longest = |of: fn(&SettingReport) -> &str| {
        let lengths = database.settings.iter().map(|setting| of(setting).chars().count());
        lengths.max().unwrap_or_default()
    };
    let (names, values) = (longest(|setting| &setting.name), longest(|setting| &setting.value));
    for setting in &database.settings {
        let source = match setting.line {
            Some(line) => format!("{}, line {line}", setting.source),
            None => setting.source.to_owned(),
        };
        writeln!(out, "  {:<names$}  {:<values$}  {source}", setting.name, setting.value)?;
    }
    match &database.store {
        None => Ok(()),
        Some(StoreReport { error: Some(error), .. }) => writeln!(out, "the replica cannot be reached: {error}"),
        Some(StoreReport { begun: true, .. }) => writeln!(out, "the replica is there, and has a history"),
        Some(_) => writeln!(out, "the replica has no history yet"),
    }
}
