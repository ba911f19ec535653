//! What there is of each connection, by its number: numbers are few and used again, so finding it costs one look.

use quinn_proto::ConnectionHandle;

use crate::hub::LinkId;

/// At most one of each link.
pub(crate) struct Slots<T> {
    slots: Vec<Option<Box<T>>>,
    taken: usize,
}

impl<T> Slots<T> {
    pub(crate) fn get(&self, link: LinkId) -> Option<&T> {
        self.slots.get(link.0)?.as_deref()
    }

    pub(crate) fn get_mut(&mut self, link: LinkId) -> Option<&mut T> {
        self.slots.get_mut(link.0)?.as_deref_mut()
    }

    pub(crate) fn insert(&mut self, link: LinkId, value: T) {
        if self.slots.len() <= link.0 {
            self.slots.resize_with(link.0 + 1, || None);
        }
        let before = self.slots[link.0].replace(Box::new(value));
        self.taken += usize::from(before.is_none());
    }

    pub(crate) fn remove(&mut self, link: LinkId) -> Option<T> {
        let gone = self.slots.get_mut(link.0)?.take()?;
        self.taken -= 1;
        Some(*gone)
    }

    pub(crate) fn len(&self) -> usize {
        self.taken
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (LinkId, &T)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(at, slot)| Some((ConnectionHandle(at), slot.as_deref()?)))
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.slots.iter_mut().filter_map(Option::as_deref_mut)
    }
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Slots { slots: Vec::new(), taken: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_those_in_between_may_be_free() {
        let mut slots = Slots::default();
        let link = ConnectionHandle;
        slots.insert(link(3), "three");
        slots.insert(link(0), "zero");
        assert_eq!(slots.iter().collect::<Vec<_>>(), [(link(0), &"zero"), (link(3), &"three")]);
        assert_eq!((slots.get(link(1)), slots.get(link(9)), slots.len()), (None, None, 2));
        assert_eq!((slots.remove(link(3)), slots.remove(link(3)), slots.remove(link(9))), (Some("three"), None, None));
        slots.insert(link(3), "another");
        slots.insert(link(3), "the last");
        assert_eq!((slots.len(), slots.get(link(3))), (2, Some(&"the last")));
    }
}
