//! Where a unit's hosts lie: side by side, so that a heartbeat of each costs few pages and lines of memory.

use weir_identity::HostId;

use crate::cache::CachedHost;

#[derive(Debug, Default)]
pub(crate) struct Hosts {
    /// By their numbers; a tree's nodes would lie all over the memory. A host comes seldom, and moves eight bytes for each other one.
    places: Vec<(HostId, u32)>,
    hosts: Vec<Option<CachedHost>>,
    free: Vec<u32>,
}

impl Hosts {
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn get(&self, host: HostId) -> Option<&CachedHost> {
        let at = self.find(host).ok()?;
        self.at(self.places[at].1)
    }

    pub(crate) fn get_mut(&mut self, host: HostId) -> Option<&mut CachedHost> {
        let at = self.find(host).ok()?;
        self.hosts.get_mut(index(self.places[at].1))?.as_mut()
    }

    /// All, by their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (HostId, &CachedHost)> {
        self.places.iter().filter_map(|(host, place)| Some((*host, self.at(*place)?)))
    }

    pub(crate) fn get_or_insert(&mut self, host: HostId, new: impl FnOnce() -> CachedHost) -> &mut CachedHost {
        let place = match self.find(host) {
            Ok(at) => self.places[at].1,
            Err(at) => {
                let next = u32::try_from(self.hosts.len()).unwrap_or(u32::MAX);
                let place = self.free.pop().unwrap_or(next);
                if place == next {
                    self.hosts.push(None);
                }
                self.places.insert(at, (host, place));
                place
            }
        };
        self.hosts[index(place)].get_or_insert_with(new)
    }

    pub(crate) fn remove(&mut self, host: HostId) {
        if let Ok(at) = self.find(host) {
            let (_, place) = self.places.remove(at);
            self.hosts[index(place)] = None;
            self.free.push(place);
        }
    }

    fn find(&self, host: HostId) -> Result<usize, usize> {
        self.places.binary_search_by_key(&host, |(known, _)| *known)
    }

    fn at(&self, place: u32) -> Option<&CachedHost> {
        self.hosts.get(index(place))?.as_ref()
    }
}

const fn index(place: u32) -> usize {
    place as usize
}
