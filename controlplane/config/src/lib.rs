//! YAML in, a validated [`Config`] or every problem at once out.
//!
//! The text is read twice: by serde's reader into values, and by `marks` for positions. `reader` turns the values into
//! the [`raw`] structs and does not stop at the first mistake; `validate` turns those into [`Config`] and refuses whatever
//! is in doubt. Mistakes of both kinds meet in one [`Report`], each with its place, line and what would be right. Warnings
//! alone do not refuse a file: they are in [`Config::warnings`].

#![forbid(unsafe_code)]

mod machine;
mod marks;
mod memory;
mod near;
mod place;
mod problem;
pub mod raw;
mod reader;
mod report;
mod types;
mod validate;

use std::fs;
use std::path::Path;

pub use machine::{Machine, Memory};
use marks::Marks;
pub use memory::MemoryNeed;
use place::Place;
pub use problem::Mistake;
pub use report::{Problem, Report, Severity};
use serde_yaml::Value;
pub use types::{
    Admin, Agents, Config, Dataplane, Device, DirectiveState, Endpoint, FlowControl, Host, Idle, Mode, Neighbour,
    NoEndpoint, Pool, Port, Ports, Probe, ProbeKind, Protocol, Route, Select, Service, Side, Take, Timeouts, Twins,
    Unit,
};

/// Loads a unit's configuration for this machine.
///
/// # Errors
/// The report has at least one error (and possibly warnings): the file cannot be read, is no YAML, or is in doubt.
pub fn load(path: impl AsRef<Path>) -> Result<Config, Report> {
    load_for(path, &Machine::this())
}

/// Loads the configuration of a unit that is to run on `machine`; of the default one nothing is known, and nothing said.
///
/// # Errors
/// As [`load`].
pub fn load_for(path: impl AsRef<Path>, machine: &Machine) -> Result<Config, Report> {
    let path = path.as_ref();
    let file = path.display().to_string();
    match fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => check(&file, &text, machine),
            Err(error) => Err(unreadable(&file, &error.utf8_error().to_string())),
        },
        Err(error) => Err(unreadable(&file, &error.to_string())),
    }
}

/// Checks a configuration's `text` for `machine`; `file` is its name in messages.
///
/// # Errors
/// As [`load`].
pub fn check(file: &str, text: &str, machine: &Machine) -> Result<Config, Report> {
    let marks = Marks::scan(text);
    let problem = |severity, place: &Place, mistake: Mistake, value: Option<&Value>| {
        let span = if mistake.is_about_key() { marks.key(place) } else { marks.value(place) };
        Problem {
            severity,
            file: file.to_owned(),
            path: place.to_string(),
            line: None,
            column: None,
            value: value.filter(|value| !value.is_null()).map(reader::show),
            first: mistake.first().and_then(|first| marks.value(&Place::root().key(first))),
            mistake,
            span,
        }
        .locate(text)
    };
    let value = match serde_yaml::from_str::<Value>(text) {
        Ok(value) => value,
        Err(error) => return Err(Report::new(file, text, syntax_problems(file, text, &marks, &error))),
    };
    let reading = reader::read(value.clone());
    let mut problems: Vec<Problem> = reading
        .mistakes
        .into_iter()
        .map(|(place, mistake)| problem(Severity::Error, &place, mistake, reader::at(&value, &place)))
        .collect();
    let mut config = None;
    if let Some(document) = reading.document {
        let verdict = validate::validate(&document, reading.cut, machine);
        problems.extend(verdict.findings.into_iter().map(|(severity, place, mistake)| {
            let found = reader::at(&value, &place);
            problem(severity, &place, mistake, found)
        }));
        config = verdict.config;
    }
    let report = Report::new(file, text, problems);
    match config {
        Some(mut config) if !report.has_errors() => {
            config.warnings = report;
            Ok(config)
        }
        _ => Err(report),
    }
}

/// The JSON schema of the YAML, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(raw::Document).to_value()
}

impl TryFrom<raw::Document> for Config {
    type Error = Report;

    /// Validates a document that was not read from text, so problems have no lines; nothing is said about the machine.
    fn try_from(document: raw::Document) -> Result<Self, Report> {
        let text = serde_yaml::to_string(&document).unwrap_or_default();
        check("document", &text, &Machine::default())
    }
}

/// The problems of a text that is no YAML: each duplicate key, or the parser's one complaint.
fn syntax_problems(file: &str, text: &str, marks: &Marks, error: &serde_yaml::Error) -> Vec<Problem> {
    let problem = |place: &Place, mistake, span| {
        Problem {
            severity: Severity::Error,
            file: file.to_owned(),
            path: place.to_string(),
            line: None,
            column: None,
            value: None,
            mistake,
            span,
            first: None,
        }
        .locate(text)
    };
    if !marks.duplicates().is_empty() {
        let repeated = marks.duplicates().iter();
        return repeated
            .map(|duplicate| Problem {
                first: marks.key(&duplicate.place),
                ..problem(&duplicate.place, Mistake::DuplicateKey, Some(duplicate.span.clone()))
            })
            .collect();
    }
    let span = error.location().map(|location| {
        let start = text.floor_char_boundary(location.index().min(text.len()));
        start..start + text[start..].chars().next().map_or(0, char::len_utf8)
    });
    vec![problem(&Place::root(), Mistake::Syntax { reason: error.to_string() }, span)]
}

/// The report on a file without a text.
fn unreadable(file: &str, reason: &str) -> Report {
    let problem = Problem {
        severity: Severity::Error,
        file: file.to_owned(),
        path: String::new(),
        line: None,
        column: None,
        value: None,
        mistake: Mistake::Unreadable { reason: reason.to_owned() },
        span: None,
        first: None,
    };
    Report::new(file, "", vec![problem])
}
