//! Where each key and value stands in the YAML's text, so that a problem found later can point at it.
//!
//! A second, positions-only pass over the same text: the values themselves come from serde's reader, so that a difference
//! between the two readers can only cost a line number.

use std::collections::HashMap;
use std::ops::Range;

use saphyr_parser::{Event, Parser, Span};

use crate::place::Place;

/// Positions of everything that has a place.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    places: HashMap<String, Mark>,
    duplicates: Vec<Duplicate>,
}

/// Bytes of a key and of its value.
#[derive(Debug, Clone)]
struct Mark {
    key: Option<Range<usize>>,
    /// Only of scalars: lists and mappings are marked by their key, or by where they begin.
    value: Option<Range<usize>>,
    begin: Range<usize>,
}

/// A key that its mapping has already.
#[derive(Debug, Clone)]
pub(crate) struct Duplicate {
    pub(crate) place: Place,
    pub(crate) span: Range<usize>,
}

impl Marks {
    /// Scans the first document of `text`; where the scan fails, what came before is known.
    pub(crate) fn scan(text: &str) -> Self {
        let mut marks = Self::default();
        let bytes = Bytes::new(text);
        let mut open: Vec<Frame> = Vec::new();
        for step in Parser::new_from_str(text) {
            let Ok((event, span)) = step else { break };
            let (scalar, opens) = match event {
                Event::Scalar(word, ..) => (Some(word.into_owned()), None),
                Event::Alias(_) => (None, None),
                Event::MappingStart(..) => (None, Some(true)),
                Event::SequenceStart(..) => (None, Some(false)),
                Event::MappingEnd | Event::SequenceEnd => {
                    open.pop();
                    continue;
                }
                Event::DocumentEnd => break,
                Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => continue,
            };
            let span = bytes.of(span);
            // A key's turn in the innermost mapping.
            if let Some(Frame::Mapping { place, key: key @ None }) = open.last_mut() {
                let Some(word) = scalar else { break }; // a list or mapping as key: serde's reader refuses it
                let inner = place.key(&word);
                if marks.places.contains_key(inner.as_str()) {
                    marks.duplicates.push(Duplicate { place: inner, span: span.clone() });
                }
                *key = Some((word, span));
                continue;
            }
            let (place, key) = match open.last_mut() {
                None => (Place::root(), None),
                Some(Frame::Mapping { place, key }) => {
                    let Some((word, key)) = key.take() else { break };
                    (place.key(&word), Some(key))
                }
                Some(Frame::List { place, next }) => {
                    *next += 1;
                    (place.at(*next - 1), None)
                }
            };
            let begin = span.start..span.start + text[span.start..].chars().next().map_or(0, char::len_utf8);
            let value = scalar.is_some().then_some(span);
            marks.places.entry(place.as_str().to_owned()).or_insert(Mark { key, value, begin });
            match opens {
                Some(_) if open.len() >= MAX_DEPTH => break,
                Some(true) => open.push(Frame::Mapping { place, key: None }),
                Some(false) => open.push(Frame::List { place, next: 0 }),
                None => {}
            }
        }
        marks
    }

    /// What to underline for a problem with the value at `place`: the value, else its key, else what encloses it.
    pub(crate) fn value(&self, place: &Place) -> Option<Range<usize>> {
        let mark = self.nearest(place)?;
        mark.value.clone().filter(|span| !span.is_empty()).or(mark.key.clone()).or(Some(mark.begin.clone()))
    }

    /// What to underline for a problem with the key at `place` itself.
    pub(crate) fn key(&self, place: &Place) -> Option<Range<usize>> {
        let mark = self.nearest(place)?;
        mark.key.clone().or(Some(mark.begin.clone()))
    }

    /// All keys that their mapping had already.
    pub(crate) fn duplicates(&self) -> &[Duplicate] {
        &self.duplicates
    }

    /// The document as a whole is no place to point at.
    fn nearest(&self, place: &Place) -> Option<&Mark> {
        let mut place = place.clone();
        while !place.is_root() {
            if let Some(mark) = self.places.get(place.as_str()) {
                return Some(mark);
            }
            place = place.parent()?;
        }
        None
    }
}

/// A list or mapping that the scan is inside of.
enum Frame {
    Mapping { place: Place, key: Option<(String, Range<usize>)> },
    List { place: Place, next: usize },
}

/// Turns the scanner's character positions into byte positions.
struct Bytes {
    /// Byte position of each character, and the end; `None` for ASCII, where they are the same.
    of_char: Option<Vec<usize>>,
    len: usize,
}

impl Bytes {
    fn new(text: &str) -> Self {
        let of_char =
            (!text.is_ascii()).then(|| text.char_indices().map(|(i, _)| i).chain([text.len()]).collect::<Vec<_>>());
        Self { of_char, len: text.len() }
    }

    fn of(&self, span: Span) -> Range<usize> {
        let start = self.at(span.start.index());
        start..self.at(span.end.index()).max(start)
    }

    fn at(&self, char: usize) -> usize {
        match &self.of_char {
            Some(bytes) => bytes.get(char).copied().unwrap_or(self.len),
            None => char.min(self.len),
        }
    }
}

/// No configuration nests this deep; paths would grow quadratically.
const MAX_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'t>(text: &'t str, place: &Place) -> &'t str {
        &text[Marks::scan(text).value(place).unwrap()]
    }

    #[test]
    fn values_keys_and_ancestors_are_found() {
        let text = "# ü\na: 1\nlist:\n  - { x: \"zwölf\", y: 2 }\n  - 7\n";
        let list = Place::root().key("list");
        assert_eq!(value(text, &Place::root().key("a")), "1");
        assert_eq!(value(text, &list.at(0).key("x")), "\"zwölf\"");
        assert_eq!(value(text, &list.at(0).key("y")), "2");
        assert_eq!(value(text, &list.at(0).key("missing")), "{");
        assert_eq!(value(text, &list.at(1)), "7");
        assert_eq!(value(text, &list), "list");
        assert_eq!(&text[Marks::scan(text).key(&list.at(0).key("y")).unwrap()], "y");
    }

    #[test]
    fn every_duplicate_is_seen() {
        let marks = Marks::scan("a: 1\nb: { c: 1, c: 2 }\na: 2\n");
        let places: Vec<_> = marks.duplicates().iter().map(|d| d.place.as_str().to_owned()).collect();
        assert_eq!(places, ["b.c", "a"]);
    }
}
