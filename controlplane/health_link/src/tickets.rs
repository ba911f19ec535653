//! Tickets: with what a unit gives them, its hosts come back without certificates and signatures, to its next life, too.
//!
//! A ticket is a session of TLS 1.3 (RFC 8446, section 4.6.1), the peer's certificates in it, sealed by the unit for itself:
//! ```text
//! day since 1970 (4 bytes, big-endian) | nonce (12) | AES-256-GCM (16 more than the session)
//! ```
//! The key follows from the unit's own key, its authority and the day, so that nothing has to be kept: who has another key or trusts
//! another authority cannot open it, nor anybody after a week. It says no more than that this chain was verified and its key proven, once:
//! time and the list of revoked certificates are asked again by whoever accepts it. The key exchange is done anew each time
//! (`psk_dhe_ke`), and nothing is accepted in the first flight (no 0-RTT), so there is nothing to be replayed.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::error::Unspecified;
use ring::hkdf::{HKDF_SHA256, Prk, Salt};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ProducesTickets;

pub(crate) struct Tickets {
    secret: Prk,
    authority: [u8; SHA256_OUTPUT_LEN],
}

impl Tickets {
    pub(crate) fn new(key: &PrivateKeyDer<'_>, authority: &[CertificateDer<'_>]) -> Tickets {
        let secret = Salt::new(HKDF_SHA256, PURPOSE).extract(key.secret_der());
        let each: Vec<u8> = authority.iter().flat_map(|root| digest(&SHA256, root).as_ref().to_vec()).collect();
        let authority = digest(&SHA256, &each).as_ref().try_into().unwrap_or_default();
        Tickets { secret, authority }
    }

    fn key(&self, day: u32) -> Result<LessSafeKey, Unspecified> {
        let (day, authority) = (day.to_be_bytes(), self.authority);
        let key = self.secret.expand(&[&authority, &day], &AES_256_GCM).map(UnboundKey::from);
        key.map(LessSafeKey::new)
    }

    fn seal(&self, session: &[u8], day: u32) -> Result<Vec<u8>, Unspecified> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce)?;
        let mut sealed = session.to_vec();
        self.key(day)?.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)?;
        Ok([day.to_be_bytes().as_slice(), &nonce, &sealed].concat())
    }

    fn open(&self, ticket: &[u8], today: u32) -> Option<Vec<u8>> {
        let (day, rest) = ticket.split_first_chunk()?;
        let (nonce, sealed) = rest.split_first_chunk()?;
        let day = u32::from_be_bytes(*day);
        if !(0..=DAYS).contains(&today.checked_sub(day)?) {
            return None;
        }
        let mut session = sealed.to_vec();
        let key = self.key(day).ok()?;
        let length = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::empty(), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        DAYS * DAY
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(session, today()?).ok()
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(ticket, today()?)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

fn today() -> Option<u32> {
    u32::try_from(UnixTime::now().as_secs() / u64::from(DAY)).ok()
}

const PURPOSE: &[u8] = b"weir-health/1 tickets";
const DAY: u32 = 24 * 60 * 60;
/// More than a week no client keeps one (RFC 8446, section 4.6.1).
const DAYS: u32 = 7;

#[cfg(test)]
mod tests {
    use rustls::pki_types::PrivatePkcs8KeyDer;

    use super::*;

    fn tickets(key: u8, authority: u8) -> Tickets {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(vec![key; 32]));
        Tickets::new(&key, &[CertificateDer::from(vec![authority; 100])])
    }

    #[test]
    fn the_next_life_of_a_unit_opens_what_this_one_sealed_for_a_week() {
        let ticket = tickets(1, 2).seal(b"a session", 20_000).unwrap();
        for today in 20_000..=20_007 {
            assert_eq!(tickets(1, 2).open(&ticket, today).unwrap(), b"a session");
        }
        // Too old; or from a clock that was wrong.
        assert_eq!(tickets(1, 2).open(&ticket, 20_008), None);
        assert_eq!(tickets(1, 2).open(&ticket, 19_999), None);
        assert_ne!(tickets(1, 2).seal(b"a session", 20_000).unwrap(), ticket);
    }

    #[test]
    fn another_key_another_authority_and_other_bytes_are_refused() {
        let ticket = tickets(1, 2).seal(b"a session", 20_000).unwrap();
        assert_eq!(tickets(3, 2).open(&ticket, 20_000), None);
        assert_eq!(tickets(1, 3).open(&ticket, 20_000), None);
        for at in 0..ticket.len() {
            let mut other = ticket.clone();
            other[at] ^= 1;
            assert_eq!(tickets(1, 2).open(&other, 20_000), None);
            assert_eq!(tickets(1, 2).open(&ticket[..at], 20_000), None);
        }
        // The day counts, too: its key is another one.
        let mut later = ticket.clone();
        later[3] += 1;
        assert_eq!(tickets(1, 2).open(&later, 20_001), None);
    }
}
