//! A forwarder's tables as memory: which of them a unit needs, and how they come to it at start.

use weir_cpu::MapError;

use super::{DeadPorts, Forwarder};
use crate::populate::Populate;
use crate::translation::TranslationTable;

impl Forwarder {
    /// The same without full-nat's tables, for a unit without a pool: it could not use them.
    #[must_use]
    pub fn without_full_nat(mut self) -> Self {
        self.translations = TranslationTable::new(0, 0);
        self.dead_ports = DeadPorts::none(self.hash.clone());
        self
    }

    /// Takes the memory of all tables now; to be called before the first route.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough.
    pub fn populate(&mut self, populate: &Populate) -> Result<(), MapError> {
        self.routes4.populate(populate)?;
        self.routes6.populate(populate)?;
        self.dead_ports.populate(populate)?;
        self.translations.populate(populate);
        Ok(())
    }

    /// Address space that the tables take, in bytes: for routes, and for full-nat.
    #[must_use]
    pub fn bytes(&self) -> (usize, usize) {
        (self.routes4.bytes() + self.routes6.bytes(), self.dead_ports.bytes() + self.translations.bytes())
    }
}
