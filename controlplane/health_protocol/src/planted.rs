//! Mistakes planted on purpose: the simulator has to find each of them. Outside of its tests there are none.

/// A mistake in one of the state machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// The unit applies changes whatever their version.
    VersionIgnored,
    /// The unit takes a heartbeat that it had already.
    ReplayTaken,
    /// The unit believes an earlier life of the host.
    StaleLifeTaken,
    /// Rows that a snapshot lacks stay in the cache.
    SnapshotKeepsRows,
    /// The unit asks for a snapshot once, and never again.
    AsksOnce,
    /// The digest is not compared.
    DigestIgnored,
    /// The host answers with the chunks that are equal.
    WrongChunks,
    /// The host does not raise its life above the one that the unit knows.
    LifeNotRaised,
    /// The host takes the target for current without asking.
    CurrentAtOnce,
    /// The host does not wait for those units it has not heard of.
    UnheardIsRight,
    /// A postulate is given up after the first attempt.
    PostulatesOnce,
    /// Silence does not count.
    NeverSilent,
    /// After a new life of a host its old rows stay good.
    OldRowsStay,
    /// A change is made, but nobody is told.
    ChangeNotReported,
    /// A unit agrees to a postulate without asking its peers.
    PeersNotAsked,
    /// A goodbye is forgotten with the next message under way.
    GoodbyeForgotten,
    /// The unit takes all that a leader says for the host's own word.
    VouchedIsSaid,
    /// The leader goes on with the heartbeats of members that are silent.
    LeaderMakesUp,
    /// The leader passes on what lay about while it could not run.
    LeaderPassesOld,
    /// A member goes on with a leader that does not answer.
    LeaderNotMissed,
    /// Of two leaders none gives way.
    LeadersStay,
    /// A host without a leader waits for one instead of beating for itself.
    NoLeaderNoBeat,
}

#[cfg(test)]
std::thread_local! {
    /// The bug that is planted in this thread's state machines.
    pub(crate) static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Is this bug planted?
#[cfg(test)]
pub(crate) fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Is this bug planted? No.
#[cfg(not(test))]
pub(crate) const fn planted(_: Bug) -> bool {
    false
}
