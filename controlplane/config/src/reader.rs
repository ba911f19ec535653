//! From YAML values to the raw structs without stopping at the first mistake.
//!
//! serde ends at its first error. So an error here knows its place; the value there is reported and cut out of the document
//! (every key of the raw structs is optional), and reading starts again, until nothing is left to complain of. Validation
//! is told what was cut, so as not to call it missing.

use serde::de::value::StrDeserializer;
use serde::de::{self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, Unexpected, Visitor};
use serde_yaml::Value;

use crate::near::nearest;
use crate::place::Place;
use crate::problem::Mistake;
use crate::raw::Document;

/// What could be read, and what had to be cut out for it.
pub(crate) struct Reading {
    /// `None`: there is no mapping at the root, or there were too many mistakes.
    pub(crate) document: Option<Document>,
    pub(crate) mistakes: Vec<(Place, Mistake)>,
    /// Places whose value, or probably whose key, was wrong.
    pub(crate) cut: Vec<Place>,
}

/// Reads a document, collecting mistakes.
pub(crate) fn read(mut value: Value) -> Reading {
    let mut mistakes = Vec::new();
    let mut cut: Vec<Place> = Vec::new();
    loop {
        let error = match de::Deserialize::deserialize(Reader(&value)) {
            Ok(document) => return Reading { document: Some(document), mistakes, cut },
            Err(error) => error,
        };
        let Error { mut path, kind } = error;
        path.reverse();
        let place = path.iter().fold(Place::root(), |place, step| step.append(&place));
        let mistake = kind.mistake(look_up(&value, &path));
        let meant = match &mistake {
            Mistake::UnknownKey { key, valid } => nearest(key, valid.iter().copied()).zip(place.parent()),
            _ => None,
        };
        if !cut.contains(&place) {
            mistakes.push((place.clone(), mistake));
        }
        cut.push(match meant {
            Some((key, parent)) => parent.key(key), // nor is this one missing
            None => place,
        });
        if mistakes.len() >= MAX_MISTAKES {
            mistakes.push((Place::root(), Mistake::TooMany { limit: MAX_MISTAKES }));
            return Reading { document: None, mistakes, cut };
        }
        if !cut_out(&mut value, &path, &mut cut) {
            return Reading { document: None, mistakes, cut };
        }
    }
}

/// Takes the value at `path` out of the document; `false` if that is all of it.
///
/// An element of a list is emptied rather than removed, since the others keep their numbers; where that does not help, the
/// list goes.
fn cut_out(value: &mut Value, path: &[Step], cut: &mut Vec<Place>) -> bool {
    let Some((last, front)) = path.split_last() else { return false };
    let Some(parent) = front.iter().try_fold(&mut *value, |value, step| step.go_mut(value)) else { return false };
    match (last, parent) {
        (Step::Key(key), Value::Mapping(mapping)) => mapping.remove(key).is_some(),
        (Step::Index(index), Value::Sequence(list)) => match list.get_mut(*index) {
            Some(Value::Mapping(mapping)) if mapping.is_empty() => {
                cut.push(front.iter().fold(Place::root(), |place, step| step.append(&place)));
                cut_out(value, front, cut)
            }
            Some(element) => {
                *element = Value::Mapping(serde_yaml::Mapping::new());
                true
            }
            None => false,
        },
        _ => false,
    }
}

fn look_up<'v>(value: &'v Value, path: &[Step]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| step.go(value))
}

/// The value at `place`, if its keys are as simple as all valid ones.
pub(crate) fn at<'v>(value: &'v Value, place: &Place) -> Option<&'v Value> {
    let steps = place.as_str().split(['.', '[']).filter(|step| !step.is_empty());
    steps.into_iter().try_fold(value, |value, step| match step.strip_suffix(']') {
        Some(index) => value.as_sequence()?.get(index.parse::<usize>().ok()?),
        None => value.as_mapping()?.get(step),
    })
}

/// A value in one line, for a message.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Sequence(_) => "a list".to_owned(),
        Value::Mapping(_) => "a mapping".to_owned(),
        Value::Tagged(tagged) => format!("the tag {}", tagged.tag),
    }
}

/// One step down from a list or mapping.
#[derive(Debug, Clone)]
enum Step {
    Key(Value),
    Index(usize),
}

impl Step {
    fn append(&self, place: &Place) -> Place {
        match self {
            Step::Key(key) => place.key(&show(key)),
            Step::Index(index) => place.at(*index),
        }
    }

    fn go<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match self {
            Step::Key(key) => value.as_mapping()?.get(key),
            Step::Index(index) => value.as_sequence()?.get(*index),
        }
    }

    fn go_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        match self {
            Step::Key(key) => value.as_mapping_mut()?.get_mut(key),
            Step::Index(index) => value.as_sequence_mut()?.get_mut(*index),
        }
    }
}

/// What serde stumbled on, and where (innermost step first).
#[derive(Debug)]
struct Error {
    path: Vec<Step>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Unexpected { expected: String },
    UnknownKey { key: String, valid: &'static [&'static str] },
    UnknownWord { valid: &'static [&'static str] },
}

impl Kind {
    fn mistake(self, found: Option<&Value>) -> Mistake {
        match self {
            Kind::Unexpected { expected } => {
                Mistake::WrongValue { found: found.map_or_else(|| "nothing".to_owned(), describe), expected }
            }
            Kind::UnknownKey { key, valid } => Mistake::UnknownKey { key, valid },
            Kind::UnknownWord { valid } => Mistake::UnknownWord { word: found.map(show).unwrap_or_default(), valid },
        }
    }
}

/// A value with its kind, for a message.
fn describe(value: &Value) -> String {
    match value {
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {text:?}"),
        _ => show(value),
    }
}

/// Says in an operator's words what serde and its derived code expect in Rust's.
fn in_words(expected: &str) -> String {
    match expected {
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "u64" => "a whole number from 0 to 18446744073709551615".to_owned(),
        "a string" => "text (numbers in quotes)".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        other if other.starts_with("struct ") => "a mapping of keys and values".to_owned(),
        other => other.to_owned(),
    }
}

impl Error {
    fn new(kind: Kind) -> Self {
        Self { path: Vec::new(), kind }
    }

    fn under(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    /// Comes from the untagged enums only, with what they expect as message.
    fn custom<T: std::fmt::Display>(expected: T) -> Self {
        Self::new(Kind::Unexpected { expected: expected.to_string() })
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Kind::Unexpected { expected: in_words(&expected.to_string()) })
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(Kind::Unexpected { expected: in_words(&expected.to_string()) })
    }

    fn unknown_variant(_: &str, valid: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownWord { valid })
    }
}

/// Deserializes one value, adding to errors where they are.
#[derive(Clone, Copy)]
struct Reader<'v>(&'v Value);

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(flag) => visitor.visit_bool(*flag),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(number), _, _) => visitor.visit_u64(number),
                (None, Some(number), _) => visitor.visit_i64(number),
                (None, None, number) => visitor.visit_f64(number.unwrap_or(f64::NAN)),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(list) => visitor.visit_seq(List(list.iter().enumerate())),
            Value::Mapping(mapping) => visitor.visit_map(Entries { entries: mapping.iter(), value: None }),
            Value::Tagged(_) => Err(de::Error::invalid_type(Unexpected::Enum, &visitor)),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        valid: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Mapping(mapping) = self.0 else {
            return Err(de::Error::invalid_type(Unexpected::Other("not a mapping"), &visitor));
        };
        match mapping.keys().find(|key| !key.as_str().is_some_and(|key| valid.contains(&key))) {
            Some(key) => Err(Error::new(Kind::UnknownKey { key: show(key), valid }).under(Step::Key(key.clone()))),
            None => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        valid: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.0 {
            Value::String(word) => {
                let word: StrDeserializer<'_, Error> = word.as_str().into_deserializer();
                visitor.visit_enum(word)
            }
            _ => Err(Error::new(Kind::UnknownWord { valid })),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

/// The elements of a list.
struct List<'v>(std::iter::Enumerate<std::slice::Iter<'v, Value>>);

impl<'de> de::SeqAccess<'de> for List<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, value)) = self.0.next() else { return Ok(None) };
        seed.deserialize(Reader(value)).map(Some).map_err(|error| error.under(Step::Index(index)))
    }
}

/// The entries of a mapping.
struct Entries<'v, I> {
    entries: I,
    value: Option<(&'v Value, &'v Value)>,
}

impl<'de, I: Iterator<Item = (&'de Value, &'de Value)>> de::MapAccess<'de> for Entries<'de, I> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.value = self.entries.next();
        self.value.map(|(key, _)| seed.deserialize(Reader(key))).transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some((key, value)) = self.value.take() else {
            return Err(de::Error::custom("a key before its value"));
        };
        seed.deserialize(Reader(value)).map_err(|error| error.under(Step::Key(key.clone())))
    }
}

/// Reading ends here: such a file is not a configuration with mistakes, but something else.
const MAX_MISTAKES: usize = 100;
