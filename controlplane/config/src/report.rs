//! What is wrong with a configuration: problems with their place, as text for people and as data for programs.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::problem::Mistake;

/// All problems of one file, in the order of its lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    file: String,
    text: Arc<str>,
    problems: Vec<Problem>,
}

impl Report {
    /// Sorts the problems by their position; those without one come first.
    pub(crate) fn new(file: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        if problems.is_empty() {
            return Self::default(); // nothing to show keeps no text
        }
        problems.sort_by_key(|problem| problem.span.as_ref().map(|span| span.start));
        Self { file: file.to_owned(), text: text.into(), problems }
    }

    /// The problems, in the order of the file's lines.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether the file was refused.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// All problems with the lines they are about; ends with a line break unless empty.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in &self.problems {
            out.push_str(&renderer.render(&[problem.group(&self.text)]));
            out.push_str("\n\n");
        }
        if out.ends_with("\n\n") {
            out.pop();
        }
        out
    }
}

impl fmt::Display for Report {
    /// Renders without colours.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

impl std::error::Error for Report {}

impl Serialize for Report {
    /// As the list of its problems.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.problems.serialize(serializer)
    }
}

/// Whether a problem keeps the unit from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

/// A mistake and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Whether it keeps the unit from starting.
    pub severity: Severity,
    /// The file's name as given.
    pub file: String,
    /// Where in the document (`services[0].ports`); empty: the file as a whole.
    pub path: String,
    /// Line, from 1; `None` if the problem has no place in the text.
    pub line: Option<usize>,
    /// Column in characters, from 1.
    pub column: Option<usize>,
    /// The value there, in one line; `None` where there is none.
    pub value: Option<String>,
    /// What is wrong.
    pub mistake: Mistake,
    /// Bytes of the text to underline.
    pub(crate) span: Option<Range<usize>>,
    /// Bytes of the earlier place that this one is at odds with.
    pub(crate) first: Option<Range<usize>>,
}

impl Problem {
    /// Sets `line` and `column` from the span.
    pub(crate) fn locate(mut self, text: &str) -> Self {
        if let Some(before) = self.span.as_ref().and_then(|span| text.get(..span.start)) {
            let line_start = before.rfind('\n').map_or(0, |at| at + 1);
            self.line = Some(before.matches('\n').count() + 1);
            self.column = Some(before[line_start..].chars().count() + 1);
        }
        self
    }

    fn group<'a>(&'a self, text: &'a str) -> Group<'a> {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = match (&self.span, self.path.as_str()) {
            (_, "") => format!("{}: {}", self.file, self.mistake),
            (None, path) => format!("{}: {path}: {}", self.file, self.mistake),
            (Some(_), path) => format!("{path}: {}", self.mistake),
        };
        let mut group = Group::with_title(level.primary_title(one_line(&title)));
        if let Some(span) = &self.span {
            let mut snippet =
                Snippet::source(text).path(self.file.as_str()).annotation(AnnotationKind::Primary.span(span.clone()));
            if let Some(first) = self.first.as_ref().filter(|first| *first != span) {
                snippet = snippet.annotation(AnnotationKind::Context.span(first.clone()).label("this one"));
            }
            group = group.element(snippet);
        }
        match self.mistake.right() {
            Some(right) => group.element(Level::HELP.message(one_line(&right))),
            None => group,
        }
    }
}

impl fmt::Display for Problem {
    /// In one line: `file:line:column: path: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}:")?;
        }
        if !self.path.is_empty() {
            write!(f, " {}:", one_line(&self.path))?;
        }
        write!(f, " {}", one_line(&self.mistake.to_string()))?;
        match self.mistake.right() {
            Some(right) => write!(f, " ({})", one_line(&right)),
            None => Ok(()),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Problem", 8)?;
        fields.serialize_field("severity", &self.severity)?;
        fields.serialize_field("file", &self.file)?;
        fields.serialize_field("path", &self.path)?;
        fields.serialize_field("line", &self.line)?;
        fields.serialize_field("column", &self.column)?;
        fields.serialize_field("value", &self.value)?;
        fields.serialize_field("message", &self.mistake.to_string())?;
        fields.serialize_field("right", &self.mistake.right())?;
        fields.end()
    }
}

/// Keeps what the file's author wrote from breaking lines or steering the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
