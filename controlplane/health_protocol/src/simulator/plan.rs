//! What a schedule is like, and the numbers that decide what happens in it: all from one seed.

/// Numbers from a seed (splitmix64).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// From 0 to `below` - 1.
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.next() % below.max(1)
    }

    /// True in so many of a thousand cases.
    pub(crate) fn per_mille(&mut self, chance: u64) -> bool {
        self.roll(1000) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let at = self.roll(from.len().try_into().unwrap());
        from[usize::try_from(at).unwrap()]
    }
}

/// What a schedule is like.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) units: u32,
    pub(crate) hosts: u32,
    /// Applications of each host.
    pub(crate) applications: u32,
    /// Hosts of a group; 1: there are no groups.
    pub(crate) group: u32,
    /// Per mille of messages.
    pub(crate) loss: u64,
    pub(crate) duplicates: u64,
    /// The longest way of a message, in ms.
    pub(crate) delay: u64,
    /// Time between two events of chaos, in ms; 0: none.
    pub(crate) chaos: u64,
    /// How long there is chaos, in ms.
    pub(crate) until: u64,
}

impl Plan {
    /// So many hosts that not everything can be watched all the time.
    pub(crate) fn is_large(&self) -> bool {
        self.hosts > 100
    }
}

/// The plan of a random schedule.
pub(crate) fn plan(seed: u64) -> Plan {
    let mut dice = Dice(seed ^ 0x5eed);
    let mut up_to = |least: u64, most: u64| least + dice.roll(most - least + 1);
    Plan {
        seed,
        units: u32::try_from(up_to(1, 5)).unwrap(),
        hosts: u32::try_from(up_to(1, 20)).unwrap(),
        applications: u32::try_from(up_to(1, 40)).unwrap(),
        group: u32::try_from([1, 2, 5, 10][usize::try_from(up_to(0, 3)).unwrap()]).unwrap(),
        loss: up_to(0, 250),
        duplicates: up_to(0, 150),
        delay: up_to(1, 250),
        chaos: up_to(10, 150),
        until: up_to(5, 40) * 1_000,
    }
}

/// The same of a whole farm: 100 units, 10,000 hosts, with and without groups of 20 by turns.
pub(crate) fn large(seed: u64) -> Plan {
    let mut dice = Dice(seed ^ 0x5eed);
    let mut up_to = |least: u64, most: u64| least + dice.roll(most - least + 1);
    Plan {
        seed,
        units: 100,
        hosts: 10_000,
        applications: 4,
        group: if seed.is_multiple_of(2) { 20 } else { 1 },
        loss: up_to(0, 50),
        duplicates: up_to(0, 20),
        delay: up_to(2, 50),
        chaos: up_to(2, 20),
        until: 5_000,
    }
}
