//! Rows of a query as people and programs read them. Pure but for the output.

use std::fmt::Write as _;
use std::io::{self, Write};

use rusqlite::types::ValueRef;
use serde_json::{Map, Value};

/// Rows that are kept until it is known how wide a table is. Those behind them are as wide as they are.
const MEASURED: usize = 1_000;
/// Characters of one value in a table.
const WIDEST: usize = 60;
/// Bytes of a BLOB that a table shows.
const BLOB: usize = 12;

/// One way to print rows.
pub(super) trait Show {
    fn row(&mut self, values: &[ValueRef<'_>]) -> io::Result<()>;
    /// After the last one.
    fn end(&mut self) -> io::Result<()>;
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
    }
    text
}

/// An array of objects.
pub(super) struct Json<W> {
    out: W,
    names: Vec<String>,
    rows: u64,
}

impl<W: Write> Json<W> {
    pub(super) fn new(out: W, names: &[String]) -> Json<W> {
        let mut unique: Vec<String> = Vec::new();
        for name in names {
            let taken = |wanted: &String| unique.contains(wanted);
            let mut further = (2..).map(|number| format!("{name}:{number}"));
            let name = match taken(name) {
                false => name.clone(),
                true => further.find(|name| !taken(name)).unwrap_or_default(),
            };
            unique.push(name);
        }
        Json {
            out,
            names: unique,
            rows: 0,
        }
    }
}

impl<W: Write> Show for Json<W> {
    fn row(&mut self, values: &[ValueRef<'_>]) -> io::Result<()> {
        self.out.write_all(if self.rows == 0 { b"[" } else { b",\n " })?;
        self.rows += 1;
        let values = values.iter().map(|value| match value {
            ValueRef::Null => Value::Null,
            ValueRef::Integer(number) => (*number).into(),
            // JSON has no infinity.
            ValueRef::Real(number) if !number.is_finite() => number.to_string().into(),
            ValueRef::Real(number) => (*number).into(),
            ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
            ValueRef::Blob(bytes) => hex(bytes).into(),
        });
        let row: Map<String, Value> = self.names.iter().cloned().zip(values).collect();
        serde_json::to_writer(&mut self.out, &row).map_err(io::Error::from)
    }

    fn end(&mut self) -> io::Result<()> {
        self.out.write_all(if self.rows == 0 { b"[]\n" } else { b"]\n" })?;
        self.out.flush()
    }
}

/// As RFC 4180 has it, with lines as Unix ends them.
pub(super) struct Csv<W> {
    out: W,
    /// Still to be written.
    header: Option<String>,
}

impl<W: Write> Csv<W> {
    pub(super) fn new(out: W, names: &[String]) -> Csv<W> {
        let header = line(names.iter().map(|name| quoted(name)));
        Csv {
            out,
            header: Some(header),
        }
    }

    fn begin(&mut self) -> io::Result<()> {
        match self.header.take() {
            Some(header) => self.out.write_all(header.as_bytes()),
            None => Ok(()),
        }
    }
}

fn line(values: impl Iterator<Item = String>) -> String {
    let mut line = values.collect::<Vec<_>>().join(",");
    line.push('\n');
    line
}

fn quoted(text: &str) -> String {
    let is_plain = !text.is_empty() && !text.contains([',', '"', '\n', '\r']) && text.trim() == text;
    match is_plain {
        true => text.to_owned(),
        false => format!("\"{}\"", text.replace('"', "\"\"")),
    }
}

impl<W: Write> Show for Csv<W> {
    fn row(&mut self, values: &[ValueRef<'_>]) -> io::Result<()> {
        self.begin()?;
        let values = values.iter().map(|value| match value {
            ValueRef::Null => String::new(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => real(*number),
            ValueRef::Text(text) => quoted(&String::from_utf8_lossy(text)),
            ValueRef::Blob(bytes) => quoted(&hex(bytes)),
        });
        self.out.write_all(line(values).as_bytes())
    }

    fn end(&mut self) -> io::Result<()> {
        self.begin()?;
        self.out.flush()
    }
}

/// A number that is not an integer looks like one that is not.
fn real(number: f64) -> String {
    format!("{number:?}")
}

/// For people.
pub(super) struct Table<W> {
    out: W,
    names: Vec<String>,
    /// `None` as long as rows are measured.
    widths: Option<Vec<usize>>,
    measured: Vec<Vec<Cell>>,
    rows: u64,
}

struct Cell {
    text: String,
    is_number: bool,
}

impl Cell {
    fn new(value: &ValueRef<'_>) -> Cell {
        let text = match value {
            ValueRef::Null => "NULL".to_owned(),
            ValueRef::Integer(number) => number.to_string(),
            ValueRef::Real(number) => real(*number),
            ValueRef::Text(text) => shown(&String::from_utf8_lossy(text)),
            ValueRef::Blob(bytes) => match bytes.get(..BLOB) {
                Some(begin) if bytes.len() > BLOB => format!("x'{}…' ({} bytes)", hex(begin), bytes.len()),
                _ => format!("x'{}'", hex(bytes)),
            },
        };
        let is_number = matches!(value, ValueRef::Integer(_) | ValueRef::Real(_));
        Cell { text, is_number }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// What the database says must not move the terminal's cursor, nor fill it.
fn shown(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(WIDEST).map(clean).collect();
    if chars.next().is_some() {
        shown.pop();
        shown.push('…');
    }
    shown
}

impl<W: Write> Table<W> {
    pub(super) fn new(out: W, names: &[String]) -> Table<W> {
        Table {
            out,
            names: names.iter().map(|name| shown(name)).collect(),
            widths: None,
            measured: Vec::new(),
            rows: 0,
        }
    }

    /// Prints the header and what was measured.
    fn begin(&mut self) -> io::Result<()> {
        let mut widths: Vec<usize> = self.names.iter().map(|name| name.chars().count()).collect();
        for row in &self.measured {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        let is_number = |column: usize| {
            let mut cells = self.measured.iter().filter_map(|row| row.get(column));
            let mut cells = cells.by_ref().filter(|cell| cell.text != "NULL").peekable();
            cells.peek().is_some() && cells.all(|cell| cell.is_number)
        };
        let names = self.names.iter().enumerate().map(|(column, name)| Cell {
            text: name.clone(),
            is_number: is_number(column),
        });
        let rules = widths.iter().map(|width| Cell {
            text: "─".repeat(*width),
            is_number: false,
        });
        print(&mut self.out, &widths, &names.collect::<Vec<_>>())?;
        print(&mut self.out, &widths, &rules.collect::<Vec<_>>())?;
        for row in self.measured.drain(..) {
            print(&mut self.out, &widths, &row)?;
        }
        self.widths = Some(widths);
        Ok(())
    }
}

fn print(out: &mut impl Write, widths: &[usize], cells: &[Cell]) -> io::Result<()> {
    let mut line = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        if !line.is_empty() {
            line.push_str("  ");
        }
        let room = " ".repeat(width.saturating_sub(cell.width()));
        match cell.is_number {
            true => line.extend([room.as_str(), &cell.text]),
            false => line.extend([cell.text.as_str(), &room]),
        }
    }
    writeln!(out, "{}", line.trim_end())
}

impl<W: Write> Show for Table<W> {
    fn row(&mut self, values: &[ValueRef<'_>]) -> io::Result<()> {
        let row: Vec<Cell> = values.iter().map(Cell::new).collect();
        self.rows += 1;
        match &self.widths {
            Some(widths) => return print(&mut self.out, widths, &row),
            None => self.measured.push(row),
        }
        match self.measured.len() == MEASURED {
            true => self.begin(),
            false => Ok(()),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if self.names.is_empty() {
            return self.out.flush();
        }
        if self.widths.is_none() {
            self.begin()?;
        }
        let rows = self.rows;
        writeln!(self.out, "({rows} {})", if rows == 1 { "row" } else { "rows" })?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [[ValueRef<'static>; 3]; 3] = [
        [
            ValueRef::Integer(7),
            ValueRef::Text(b"a, \"b\"\x1b[2J"),
            ValueRef::Blob(&[0, 255]),
        ],
        [ValueRef::Integer(-12345), ValueRef::Text(b""), ValueRef::Null],
        [ValueRef::Null, ValueRef::Real(1.0), ValueRef::Blob(&[9; 20])],
    ];

    fn printed<S: Show>(make: impl FnOnce(Vec<String>) -> S, rows: &[[ValueRef<'_>; 3]]) {
        let mut show = make(["id", "name", "name"].map(str::to_owned).to_vec());
        for row in rows {
            show.row(row).unwrap();
        }
        show.end().unwrap();
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn objects() {
        let mut out = Vec::new();
        printed(|names| Json::new(&mut out, &names), &ROWS);
        let told: Value = serde_json::from_slice(&out).unwrap();
        let expected = serde_json::json!([
            {"id": 7, "name": "a, \"b\"\u{1b}[2J", "name:2": "00ff"},
            {"id": -12345, "name": "", "name:2": null},
            {"id": null, "name": 1.0, "name:2": "09".repeat(20)},
        ]);
        assert_eq!(told, expected);
        let mut out = Vec::new();
        printed(|names| Json::new(&mut out, &names), &[]);
        assert_eq!(text(&out), "[]\n");
    }

    #[test]
    fn comma_separated() {
        let mut out = Vec::new();
        printed(|names| Csv::new(&mut out, &names), &ROWS);
        let expected = format!(
            "id,name,name\n7,\"a, \"\"b\"\"\x1b[2J\",00ff\n-12345,\"\",\n,1.0,{}\n",
            "09".repeat(20)
        );
        assert_eq!(text(&out), expected);
        let mut out = Vec::new();
        printed(|names| Csv::new(&mut out, &names), &[]);
        assert_eq!(text(&out), "id,name,name\n");
    }

    #[test]
    fn for_people() {
        let mut out = Vec::new();
        printed(|names| Table::new(&mut out, &names), &ROWS);
        let expected = "    id  name        name\n\
                        ──────  ──────────  ───────────────────────────────────────\n\
                        \u{20}    7  a, \"b\" [2J  x'00ff'\n\
                        -12345              NULL\n\
                        NULL           1.0  x'090909090909090909090909…' (20 bytes)\n\
                        (3 rows)\n";
        assert_eq!(text(&out), expected);
        assert_eq!(shown(&"ü".repeat(100)), "ü".repeat(59) + "…");
    }

    #[test]
    fn many_rows_are_not_kept() {
        let mut out = Vec::new();
        let mut table = Table::new(&mut out, &["n".to_owned()]);
        for n in 0..5_000 {
            table.row(&[ValueRef::Integer(n)]).unwrap();
            assert!(table.measured.len() <= MEASURED);
        }
        table.end().unwrap();
        assert!(text(&out).ends_with("4999\n(5000 rows)\n"));
    }
}
