//! A health & load table with its digests: the truth on the host, a copy of it in a unit's cache.

use std::collections::BTreeMap;
use std::hash::Hasher;

use siphasher::sip::SipHasher13;
use weir_identity::ApplicationId;

use crate::row::Row;
use crate::wire;

/// Rows by application; the digests follow every change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    rows: BTreeMap<ApplicationId, (Row, u64)>,
    digest: u64,
}

impl Table {
    /// The row of an application.
    #[must_use]
    pub fn row(&self, application: ApplicationId) -> Option<&Row> {
        self.rows.get(&application).map(|(row, _)| row)
    }

    /// All rows, by application.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.values().map(|(row, _)| row)
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Is there no row?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Takes a row in place of the one of the same application.
    pub fn insert(&mut self, row: Row) -> Option<Row> {
        let hash = row_hash(&row);
        let old = self.rows.insert(row.application, (row, hash));
        self.digest = self.digest.wrapping_add(hash);
        old.map(|(row, hash)| {
            self.digest = self.digest.wrapping_sub(hash);
            row
        })
    }

    /// Takes a row out.
    pub fn remove(&mut self, application: ApplicationId) -> Option<Row> {
        let (row, hash) = self.rows.remove(&application)?;
        self.digest = self.digest.wrapping_sub(hash);
        Some(row)
    }

    /// Says of every row that any other version is newer.
    pub(crate) fn forget_versions(&mut self) {
        self.digest = 0;
        for (row, _) in std::mem::take(&mut self.rows).into_values() {
            self.insert(Row { version: 0, ..row });
        }
    }

    /// One number for the whole table: equal tables have equal digests, and others practically never.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// The digest of each chunk of rows, if the table is cut into 2^`bits` chunks.
    #[must_use]
    pub fn chunk_digests(&self, bits: u8) -> Vec<u64> {
        let mut digests = vec![0_u64; 1 << bits.min(CHUNK_BITS_MAX)];
        for (application, (_, hash)) in &self.rows {
            let digest = &mut digests[chunk(*application, bits)];
            *digest = digest.wrapping_add(*hash);
        }
        digests
    }
}

/// Into how many chunks (as a power of two) a table of so many rows is cut: about 16 rows to a chunk.
#[must_use]
pub fn chunk_bits(rows: usize) -> u8 {
    let bits = rows.div_ceil(ROWS_PER_CHUNK).next_power_of_two().trailing_zeros();
    u8::try_from(bits).unwrap_or(CHUNK_BITS_MAX).min(CHUNK_BITS_MAX)
}

/// The chunk that an application's row is in, if there are 2^`bits`.
#[must_use]
pub fn chunk(application: ApplicationId, bits: u8) -> usize {
    let spread = u64::from(application.0.wrapping_mul(0x9e37_79b1));
    usize::try_from((spread << bits.min(CHUNK_BITS_MAX)) >> 32).unwrap_or(0)
}

/// What a row adds to the digests: a hash of its bytes on the wire, so of all it says.
fn row_hash(row: &Row) -> u64 {
    let mut bytes = Vec::with_capacity(64);
    wire::put_row(&mut bytes, row);
    let mut hasher = SipHasher13::new_with_keys(DIGEST_KEY.0, DIGEST_KEY.1);
    hasher.write(&bytes);
    hasher.finish()
}

/// At most 64 chunks.
pub const CHUNK_BITS_MAX: u8 = 6;

const ROWS_PER_CHUNK: usize = 16;

/// Fixed, so that all nodes agree; not a secret: a host can only lie about its own rows.
const DIGEST_KEY: (u64, u64) = (0x7765_6972_2d72_6f77, 0x2d64_6967_6573_7431);

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use weir_health_load::{Directive, Health};

    use super::*;
    use crate::row::{Directives, Identity, Status};

    pub(crate) fn directive() -> impl Strategy<Value = Directive> {
        prop_oneof![Just(Directive::Active), Just(Directive::Draining), Just(Directive::Inactive)]
    }

    pub(crate) fn row() -> impl Strategy<Value = Row> {
        let identity =
            (any::<u8>(), any::<Option<(std::net::IpAddr, u16)>>(), any::<Option<(std::net::IpAddr, u16)>>())
                .prop_flat_map(|(protocol, vip, endpoint)| {
                    "[ -~äß]{0,40}".prop_map(move |detail| Identity { protocol, vip, endpoint, detail })
                });
        let health = prop_oneof![Just(Health::Healthy), Just(Health::Failing), Just(Health::Unknown)];
        let status = (health, 0..=99_u8, 0..=99_u8).prop_map(|(health, a, b)| Status {
            health,
            load: a.min(b),
            capacity: a.max(b),
        });
        let directives = (directive(), directive()).prop_map(|(target, current)| Directives { target, current });
        (any::<u32>(), any::<u64>(), identity, status, directives).prop_map(
            |(id, version, identity, status, directives)| Row {
                application: ApplicationId(id),
                version,
                identity,
                status,
                directives,
            },
        )
    }

    proptest! {
        #[test]
        fn digests_know_content_and_not_history(rows in prop::collection::vec(row(), 0..60), bits in 0..=CHUNK_BITS_MAX) {
            let mut table = Table::default();
            for row in &rows {
                table.insert(row.clone());
            }
            let mut again = Table::default();
            for row in rows.iter().rev() {
                if again.row(row.application).is_none() {
                    again.insert(Row { version: row.version ^ 1, ..row.clone() });
                    again.insert(row.clone());
                }
            }
            prop_assert_eq!(&table, &again);
            let chunks = table.chunk_digests(bits);
            prop_assert_eq!(chunks.iter().fold(0, |sum: u64, digest| sum.wrapping_add(*digest)), table.digest());
            if let Some(row) = rows.last() {
                again.insert(Row { version: row.version ^ 1, ..row.clone() });
                prop_assert_ne!(table.digest(), again.digest());
                let other = again.chunk_digests(bits);
                let differ: Vec<usize> = (0..chunks.len()).filter(|i| chunks[*i] != other[*i]).collect();
                prop_assert_eq!(differ, vec![chunk(row.application, bits)]);
                again.remove(row.application);
                table.remove(row.application);
                prop_assert_eq!(table, again);
            }
        }
    }

    #[test]
    fn tables_are_cut_by_their_size() {
        assert_eq!([0, 1, 16, 17, 32, 33, 1024, 9999].map(chunk_bits), [0, 0, 0, 1, 1, 2, 6, 6]);
    }
}
