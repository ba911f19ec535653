//! What full-nat's way back needs of each connection: the client, and the VIP and port it knows, in a slab found by a route's value.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::populate::Populate;

/// The ends that packets on the way back are translated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// Where the client is. Flow label and scope of an IPv6 address are not kept.
    pub client: SocketAddr,
    /// Index of the VIP in the farm.
    pub vip: u32,
    /// The service's port.
    pub port: u16,
}

/// One shard's translations. Slots are reused, the latest first: whoever removes one has removed the routes that name it.
///
/// An IPv4 client takes 16 bytes, an IPv6 client 28. All memory is reserved at construction, and touched when it is first used.
#[derive(Debug)]
pub struct TranslationTable {
    v4: Slab<Ends<[u8; 4]>>,
    v6: Slab<Ends<[u8; 16]>>,
}

impl TranslationTable {
    /// A table with room for so many clients of each family; more than 2³¹ − 1 of a family cannot be named and are not given.
    #[must_use]
    pub fn new(v4: usize, v6: usize) -> Self {
        Self { v4: Slab::new(v4), v6: Slab::new(v6) }
    }

    /// Takes all memory now; to be called before the first translation.
    pub(crate) fn populate(&mut self, populate: &Populate) {
        debug_assert!(self.is_empty());
        populate.vector(&mut self.v4.places, Place::Free(END));
        populate.vector(&mut self.v6.places, Place::Free(END));
    }

    /// Address space taken, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.v4.places.capacity() * size_of::<Place<Ends<[u8; 4]>>>()
            + self.v6.places.capacity() * size_of::<Place<Ends<[u8; 16]>>>()
    }

    /// Adds a translation and returns its slot; `None` if the client's family has no room.
    #[inline]
    pub fn insert(&mut self, translation: Translation) -> Option<u32> {
        let Translation { client, vip, port } = translation;
        let client_port = client.port();
        match client {
            SocketAddr::V4(client) => self.v4.insert(Ends { client: client.ip().octets(), client_port, vip, port }),
            SocketAddr::V6(client) => {
                let slot = self.v6.insert(Ends { client: client.ip().octets(), client_port, vip, port })?;
                Some(slot | IS_V6)
            }
        }
    }

    /// The translation in a slot.
    #[inline]
    #[must_use]
    pub fn find(&self, slot: u32) -> Option<Translation> {
        if slot & IS_V6 == 0 {
            self.v4.find(slot).map(Ends::widen4)
        } else {
            self.v6.find(slot & !IS_V6).map(Ends::widen6)
        }
    }

    /// Asks the processor for a slot.
    #[inline]
    pub fn prefetch(&self, slot: u32) {
        if slot & IS_V6 == 0 {
            weir_cpu::prefetch_at(&self.v4.places, slot as usize);
        } else {
            weir_cpu::prefetch_at(&self.v6.places, (slot & !IS_V6) as usize);
        }
    }

    /// Frees a slot and returns what was in it; `None` if it was free.
    #[inline]
    pub fn remove(&mut self, slot: u32) -> Option<Translation> {
        if slot & IS_V6 == 0 {
            self.v4.remove(slot).as_ref().map(Ends::widen4)
        } else {
            self.v6.remove(slot & !IS_V6).as_ref().map(Ends::widen6)
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.v4.used + self.v6.used
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A translation, packed.
#[derive(Debug, Clone, Copy)]
struct Ends<A> {
    vip: u32,
    client: A,
    client_port: u16,
    port: u16,
}

impl Ends<[u8; 4]> {
    #[inline]
    fn widen4(&self) -> Translation {
        let client = SocketAddr::new(Ipv4Addr::from(self.client).into(), self.client_port);
        Translation { client, vip: self.vip, port: self.port }
    }
}

impl Ends<[u8; 16]> {
    #[inline]
    fn widen6(&self) -> Translation {
        let client = SocketAddr::new(Ipv6Addr::from(self.client).into(), self.client_port);
        Translation { client, vip: self.vip, port: self.port }
    }
}

/// A fixed number of places, found by number.
#[derive(Debug)]
struct Slab<T> {
    places: Vec<Place<T>>,
    capacity: usize,
    /// The place freed last, or [`END`].
    free: u32,
    used: usize,
}

#[derive(Debug, Clone, Copy)]
enum Place<T> {
    Used(T),
    /// With the place that was freed before it.
    Free(u32),
}

impl<T: Copy> Slab<T> {
    fn new(capacity: usize) -> Self {
        let capacity = capacity.min(END as usize);
        Self { places: Vec::with_capacity(capacity), capacity, free: END, used: 0 }
    }

    #[inline]
    fn insert(&mut self, value: T) -> Option<u32> {
        let slot = if self.free != END {
            let slot = self.free;
            let place = self.places.get_mut(slot as usize)?;
            let Place::Free(next) = *place else { return None };
            *place = Place::Used(value);
            self.free = next;
            slot
        } else {
            if self.places.len() == self.capacity {
                return None;
            }
            self.places.push(Place::Used(value));
            u32::try_from(self.places.len() - 1).ok()?
        };
        self.used += 1;
        Some(slot)
    }

    #[inline]
    fn find(&self, slot: u32) -> Option<&T> {
        match self.places.get(slot as usize)? {
            Place::Used(value) => Some(value),
            Place::Free(_) => None,
        }
    }

    #[inline]
    fn remove(&mut self, slot: u32) -> Option<T> {
        let place = self.places.get_mut(slot as usize)?;
        let Place::Used(value) = *place else { return None };
        *place = Place::Free(self.free);
        self.free = slot;
        self.used -= 1;
        Some(value)
    }
}

/// The bit of a slot that says which slab it is in.
const IS_V6: u32 = 1 << 31;
/// No place: one more than the last that has a number.
const END: u32 = IS_V6 - 1;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn entries_are_small() {
        assert_eq!(size_of::<Place<Ends<[u8; 4]>>>(), 16);
        assert_eq!(size_of::<Place<Ends<[u8; 16]>>>(), 28);
    }

    #[test]
    fn a_family_without_room_takes_nothing() {
        let mut table = TranslationTable::new(1, 0);
        let of = |client: &str| Translation { client: client.parse().unwrap(), vip: 7, port: 80 };
        assert_eq!(table.insert(of("[2001:db8::1]:9")), None);
        let slot = table.insert(of("10.0.0.1:9")).unwrap();
        assert_eq!(table.insert(of("10.0.0.2:9")), None);
        assert_eq!(table.remove(slot), Some(of("10.0.0.1:9")));
        assert_eq!((table.remove(slot), table.find(slot), table.is_empty()), (None, None, true));
        assert_eq!(table.insert(of("10.0.0.2:9")), Some(slot));
        assert_eq!(table.find(slot | IS_V6), None);
        assert_eq!(table.find(u32::MAX), None);
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_never_grows(steps in prop::collection::vec((any::<bool>(), any::<u16>(), any::<bool>()), 1..400)) {
            let mut table = TranslationTable::new(20, 30);
            let memory = (table.v4.places.as_ptr(), table.v6.places.as_ptr());
            let mut model: HashMap<u32, Translation> = HashMap::new();
            for (insert, n, v6) in steps {
                let ip = if v6 { Ipv6Addr::from(u128::from(n)).into() } else { Ipv4Addr::from(u32::from(n)).into() };
                let translation = Translation { client: SocketAddr::new(ip, n), vip: u32::from(n) << 9, port: !n };
                if insert {
                    let room = model.values().filter(|other| other.client.is_ipv6() == v6).count() < if v6 { 30 } else { 20 };
                    let slot = table.insert(translation);
                    prop_assert_eq!(slot.is_some(), room);
                    if let Some(slot) = slot {
                        prop_assert_eq!(model.insert(slot, translation), None);
                    }
                } else if let Some(&slot) = model.keys().nth(usize::from(n) % model.len().max(1)) {
                    prop_assert_eq!(table.remove(slot), model.remove(&slot));
                }
                prop_assert_eq!(table.len(), model.len());
                for (slot, translation) in &model {
                    prop_assert_eq!(table.find(*slot), Some(*translation));
                }
            }
            prop_assert_eq!(memory, (table.v4.places.as_ptr(), table.v6.places.as_ptr()));
        }
    }
}
