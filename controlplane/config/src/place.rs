//! A place in the YAML document: `services[0].endpoints[2].port`.

use std::fmt;

/// A path from the document's root; the root is empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Place(String);

impl Place {
    /// The whole document.
    pub(crate) fn root() -> Self {
        Self::default()
    }

    /// The value of `key` in the mapping that is here.
    pub(crate) fn key(&self, key: &str) -> Self {
        if self.0.is_empty() { Self(key.to_owned()) } else { Self(format!("{}.{key}", self.0)) }
    }

    /// The element `index` of the list that is here.
    pub(crate) fn at(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// What encloses this place; `None` for the root.
    pub(crate) fn parent(&self) -> Option<Self> {
        if self.0.is_empty() {
            return None;
        }
        Some(Self(self.0[..self.0.rfind(['.', '[']).unwrap_or(0)].to_owned()))
    }

    /// Whether this place is `other` or in it.
    pub(crate) fn is_within(&self, other: &Place) -> bool {
        match self.0.strip_prefix(&other.0) {
            Some(rest) => rest.is_empty() || other.0.is_empty() || rest.starts_with(['.', '[']),
            None => false,
        }
    }

    /// Whether this is the whole document.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// As text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_down_and_up() {
        let place = Place::root().key("services").at(0).key("ports").at(12);
        assert_eq!(place.as_str(), "services[0].ports[12]");
        let up: Vec<_> = std::iter::successors(Some(place.clone()), Place::parent).map(|p| p.to_string()).collect();
        assert_eq!(up, ["services[0].ports[12]", "services[0].ports", "services[0]", "services", ""]);
        assert!(place.is_within(&Place::root().key("services").at(0)));
        assert!(!Place::root().key("services").at(10).is_within(&Place::root().key("services").at(1)));
        assert!(!Place::root().key("hostsX").is_within(&Place::root().key("hosts")));
    }
}
