//! Toeplitz: the hash that NICs compute, here of a client's address and port alone; it chooses a flow's bucket and nothing else.
//!
//! It is linear: whoever sees some of its results could compute the others, and all flows of a shard share bits of it. So slots of
//! tables, classifiers and whatever else a client must not be able to aim at use the keyed hashes of [`FlowHash`](super::FlowHash).
//!
//! Bit *i* of the input, counted from the first byte's highest, contributes the key's 32 bits from bit *i* on (Microsoft, "RSS hashing
//! types"). Of the 32 bits of the result a bucket needs the last seven, which depend on 54 bits of the key for each 48 of the
//! input: one carry-less multiplication, or a table of 256 for each byte.

use std::fmt;
use std::net::IpAddr;

use weir_cpu::Clmul;

/// How many buckets there are: seven bits of the hash.
pub const BUCKETS: usize = 128;

/// A key K of the hash, of which every seven bits that choose a bucket are good ones; see [`WeakKey`]. It is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct ToeplitzKey([u8; Self::LEN]);

/// Why a key is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakKey {
    /// Clients would not be spread over all buckets by their ports: Linux leaves a port's lowest bit alone, and pools have at least
    /// 1024 ports in a row.
    #[error("the key does not spread a client's ports over all buckets")]
    Rank,
    /// Both directions of a flow would have one hash, and so would many flows.
    #[error("the key repeats itself every 16 bits")]
    Symmetric,
}

impl ToeplitzKey {
    /// Bytes of a key: as many as the most demanding NICs want; others take the first 40.
    pub const LEN: usize = 52;

    /// A key of these bytes.
    ///
    /// # Errors
    ///
    /// [`WeakKey`]; about half of all random keys are refused.
    pub fn new(bytes: [u8; Self::LEN]) -> Result<Self, WeakKey> {
        if bytes[..].windows(4).all(|window| window[..2] == window[2..]) {
            return Err(WeakKey::Symmetric);
        }
        for port in [PORT4, PORT6] {
            // Bit b of a port is input bit 15 - b of the port's.
            let columns = (1..=WHOLE_PORTS).map(|bit| bits(&bytes, 8 * port + 15 - bit + INDEX_BITS));
            if rank(columns) < INDEX {
                return Err(WeakKey::Rank);
            }
        }
        Ok(Self(bytes))
    }

    /// The first good key that `random` draws.
    pub fn draw(mut random: impl FnMut() -> [u8; Self::LEN]) -> Self {
        loop {
            if let Ok(key) = Self::new(random()) {
                return key;
            }
        }
    }

    /// The key of a unit that has one shard and stands alone: with nothing but zeros every flow is in bucket 0, and any client may have
    /// any port of a pool, however few those are.
    #[must_use]
    pub fn one_bucket() -> Self {
        Self([0; Self::LEN])
    }

    /// A key that follows from `seed`: for repeatable runs and for tests.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        use std::hash::BuildHasher;
        let hash = foldhash::fast::FixedState::with_seed(seed);
        let mut drawn = 0_u64;
        Self::draw(|| {
            let mut bytes = [0; Self::LEN];
            for chunk in bytes.chunks_mut(8) {
                drawn += 1;
                let word = hash.hash_one(drawn).to_le_bytes();
                chunk.copy_from_slice(&word[..chunk.len()]);
            }
            bytes
        })
    }

    /// Its bytes, for NICs and for the unit's state.
    #[must_use]
    pub fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Debug for ToeplitzKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ToeplitzKey(secret)")
    }
}

/// The hash of `input` by `key`, whole: 32 bits, as in a NIC's descriptors. Input beyond the key's end counts for nothing.
#[must_use]
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let set = |bit: &usize| input[bit / 8] >> (7 - bit % 8) & 1 == 1;
    (0..8 * input.len()).filter(set).fold(0, |hash, bit| hash ^ window(key, bit))
}

/// The hash, made ready for clients of both families.
#[derive(Debug, Clone)]
pub struct Toeplitz {
    key: ToeplitzKey,
    /// For each byte of an IPv6 client (an IPv4 client's are the first six): what each value contributes, as a [`Class`].
    tables: Box<[[u8; 256]; LONGEST]>,
    /// For each 48 bits of the input, the part of the key that multiplies them; where there is an instruction for that.
    product: Option<(Clmul, [u64; LONGEST / PIECE])>,
}

/// A bucket with its seven bits in reverse order, as the multiplication leaves them.
type Class = u8;

impl Toeplitz {
    /// The hash by a key, computed as this machine does it fastest.
    #[must_use]
    pub fn new(key: &ToeplitzKey) -> Self {
        let factors = std::array::from_fn(|piece| factor(&key.0, 8 * PIECE * piece));
        Self { product: Clmul::detect().map(|clmul| (clmul, factors)), ..Self::by_tables(key) }
    }

    /// The same, computed by tables alone.
    #[must_use]
    pub fn by_tables(key: &ToeplitzKey) -> Self {
        let mut tables = Box::new([[0; 256]; LONGEST]);
        for (at, table) in tables.iter_mut().enumerate() {
            for (value, class) in (0..=u8::MAX).zip(table.iter_mut()) {
                let set = (0..8).filter(|bit| value >> (7 - bit) & 1 == 1);
                *class = set.fold(0, |class, bit| class ^ reversed(bits(&key.0, 8 * at + bit + INDEX_BITS)));
            }
        }
        Self { key: key.clone(), tables, product: None }
    }

    /// Its key.
    #[must_use]
    pub fn key(&self) -> &ToeplitzKey {
        &self.key
    }

    /// The bucket of a client.
    #[must_use]
    pub fn bucket(&self, address: IpAddr, port: u16) -> usize {
        let port = port.to_be_bytes();
        let class = match address {
            IpAddr::V4(address) => self.class4(address.octets(), port),
            IpAddr::V6(address) => self.class6(address.octets(), port),
        };
        reversed(class).into()
    }

    /// The class of an IPv4 client; address and port as in the packet.
    #[inline(always)]
    pub(super) fn class4(&self, address: [u8; 4], port: [u8; 2]) -> Class {
        let ([a, b, c, d], [e, f]) = (address, port);
        match &self.product {
            Some((clmul, factors)) => class(clmul.multiply(u64::from_be_bytes([0, 0, a, b, c, d, e, f]), factors[0])),
            None => [a, b, c, d, e, f]
                .iter()
                .zip(self.tables.iter())
                .fold(0, |class, (byte, table)| class ^ table[usize::from(*byte)]),
        }
    }

    /// The class of an IPv6 client.
    #[inline(always)]
    pub(super) fn class6(&self, address: [u8; 16], port: [u8; 2]) -> Class {
        match &self.product {
            Some((clmul, [first, second, third])) => {
                let address = u128::from_be_bytes(address);
                #[expect(clippy::cast_possible_truncation, reason = "48 bits are taken of it each time")]
                let (a, b, c) = ((address >> 80) as u64, (address >> 32) as u64 & PIECE_MASK, address as u32);
                let c = u64::from(c) << 16 | u64::from(u16::from_be_bytes(port));
                class(clmul.multiply(a, *first) ^ clmul.multiply(b, *second) ^ clmul.multiply(c, *third))
            }
            None => address
                .iter()
                .chain(&port)
                .zip(self.tables.iter())
                .fold(0, |class, (byte, table)| class ^ table[usize::from(*byte)]),
        }
    }
}

/// The class that a product holds.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "seven bits are taken of it")]
fn class(product: u64) -> Class {
    (product >> (8 * PIECE - 1)) as u8 & 0x7f
}

/// A class as a bucket, and the other way round.
#[inline]
pub(super) fn reversed(bits: u8) -> u8 {
    bits.reverse_bits() >> 1
}

/// What multiplies 48 bits of input from bit `from` on. With x the input as a number, whose bit p is input bit 47 - p, bit q of the
/// bucket is the sum over p of `x[p] · K[47 - p + 31 - q]`, which is bit 53 - q of the product of x and y where `y[t] = K[25 + t]`.
fn factor(key: &[u8], from: usize) -> u64 {
    (0..8 * PIECE + INDEX - 1).fold(0, |factor, t| factor | u64::from(bit(key, from + INDEX_BITS + t)) << t)
}

/// Bit `at` of the key, counted from the first byte's highest; 0 behind its end.
fn bit(key: &[u8], at: usize) -> u8 {
    key.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1)
}

/// Seven bits of the key from bit `at` on.
fn bits(key: &[u8], at: usize) -> u8 {
    (at..at + INDEX).fold(0, |bits, at| bits << 1 | bit(key, at))
}

/// 32 bits of the key from bit `at` on.
fn window(key: &[u8], at: usize) -> u32 {
    (at..at + 32).fold(0, |bits, at| bits << 1 | u32::from(bit(key, at)))
}

/// How many of the columns are independent of one another.
fn rank(columns: impl Iterator<Item = u8>) -> usize {
    // By its highest bit, what has been found so far.
    let mut basis = [0_u8; INDEX];
    for mut column in columns {
        while column != 0 {
            let highest = column.ilog2() as usize;
            if basis[highest] == 0 {
                basis[highest] = column;
                break;
            }
            column ^= basis[highest];
        }
    }
    basis.iter().filter(|column| **column != 0).count()
}

/// Bits of the hash that choose a bucket: its last ones.
const INDEX: usize = BUCKETS.ilog2() as usize;
/// Where these bits begin in the 32 of the hash.
const INDEX_BITS: usize = 32 - INDEX;
/// Bytes of an IPv6 client: address and port.
const LONGEST: usize = 18;
/// Bytes that one multiplication takes: an IPv4 client's.
const PIECE: usize = 6;
const PIECE_MASK: u64 = (1 << (8 * PIECE)) - 1;
/// Where a client's port is, behind its address.
const PORT4: usize = 4;
const PORT6: usize = 16;
/// A key has to spread ports that differ in bits 1 to 9 alone: 1024 ports in a row, which then have the same number of each bucket.
const WHOLE_PORTS: usize = 9;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    /// Microsoft's RSS verification suite.
    const PUBLISHED: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca,
        0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b,
        0xbe, 0xac, 0x01, 0xfa,
    ];

    fn input(source: &str, destination: &str, ports: bool) -> Vec<u8> {
        let (source, destination): (SocketAddr, SocketAddr) = (source.parse().unwrap(), destination.parse().unwrap());
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut input = [octets(source.ip()), octets(destination.ip())].concat();
        if ports {
            input.extend(source.port().to_be_bytes());
            input.extend(destination.port().to_be_bytes());
        }
        input
    }

    #[test]
    fn the_published_vectors() {
        for (source, destination, with_ports, without) in [
            ("66.9.149.187:2794", "161.142.100.80:1766", 0x51cc_c178, 0x323e_8fc2),
            ("199.92.111.2:14230", "65.69.140.83:4739", 0xc626_b0ea, 0xd718_262a),
            ("24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b_394a, 0xd2d0_a5de),
            ("38.27.205.30:48228", "209.142.163.6:2217", 0xafc7_327f, 0x8298_9176),
            ("153.39.163.191:44251", "202.188.127.2:1303", 0x10e8_28a2, 0x5d18_09c5),
            ("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x4020_7d3d, 0x2cc1_8cd5),
            ("[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0xdde5_1bbf, 0x0f0c_461c),
        ] {
            assert_eq!(toeplitz(&PUBLISHED, &input(source, destination, true)), with_ports, "{source}");
            assert_eq!(toeplitz(&PUBLISHED, &input(source, destination, false)), without, "{source}");
        }
    }

    #[test]
    fn weak_keys_are_refused() {
        let symmetric = std::array::from_fn(|at| [0x6d, 0x5a][at % 2]);
        assert_eq!(ToeplitzKey::new(symmetric), Err(WeakKey::Symmetric));
        let mut key = *ToeplitzKey::from_seed(1).bytes();
        // A port's contributions come from here on.
        key[7..11].fill(0);
        assert_eq!(ToeplitzKey::new(key), Err(WeakKey::Rank));
        assert_eq!(format!("{:?}", ToeplitzKey::from_seed(1)), "ToeplitzKey(secret)");
    }

    #[test]
    fn every_1024_ports_in_a_row_have_each_bucket_equally_often() {
        let hash = Toeplitz::new(&ToeplitzKey::from_seed(7));
        for address in ["10.0.0.1", "2001:db8::1"] {
            for block in 0..64 {
                let mut counts = [0; BUCKETS];
                for port in block * 1024..(block + 1) * 1024 {
                    counts[hash.bucket(address.parse().unwrap(), u16::try_from(port).unwrap())] += 1;
                }
                assert_eq!(counts, [8; BUCKETS], "{address}, block {block}");
            }
        }
    }

    proptest! {
        #[test]
        fn tables_and_multiplication_are_the_hash(seed: u64, v4: [u8; 4], v6: [u8; 16], port: u16) {
            let key = ToeplitzKey::from_seed(seed);
            let (fast, tables) = (Toeplitz::new(&key), Toeplitz::by_tables(&key));
            for (address, octets) in [(IpAddr::from(v4), &v4[..]), (IpAddr::from(v6), &v6[..])] {
                let whole = toeplitz(key.bytes(), &[octets, &port.to_be_bytes()].concat());
                let bucket = usize::try_from(whole).unwrap() % BUCKETS;
                prop_assert_eq!(fast.bucket(address, port), bucket);
                prop_assert_eq!(tables.bucket(address, port), bucket);
                // A NIC that hashes addresses alone, as it does where there are no ports, agrees.
                let alone = usize::try_from(toeplitz(key.bytes(), octets)).unwrap() % BUCKETS;
                prop_assert_eq!(fast.bucket(address, 0), alone);
            }
        }
    }
}
