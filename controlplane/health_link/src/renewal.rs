//! Keys that are renewed and lists that grow while links are up: the files are looked at, and whoever is not admitted any more loses its link.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use crate::keys::Keys;

/// The keys as they are now, for whoever makes or has a connection.
pub(crate) type CurrentKeys = watch::Receiver<Keys>;

/// Looks at the files every second and whenever it is told to; what is no complete set of keys for the same node is not taken.
pub(crate) async fn follow(current: watch::Sender<Keys>, look: Arc<Notify>) {
    let mut seen = current.borrow().stamp();
    loop {
        let _ = timeout(EVERY, look.notified()).await;
        // Looked at before it is read: what changes in between is read again.
        let stamp = current.borrow().stamp();
        if stamp == seen {
            continue;
        }
        seen = stamp;
        let before = current.borrow().clone();
        match before.again() {
            Ok(keys) => {
                tracing::info!("certificate, key or revocation list is another: taken");
                let _ = current.send(keys);
            }
            Err(error) => tracing::warn!(%error, "certificate, key or revocation list is another, but of no use"),
        }
    }
}

/// Returns once the peer is not admitted any more: revoked, expired, or of another authority.
pub(crate) async fn until_refused(chain: &[CertificateDer<'static>], mut keys: CurrentKeys) {
    loop {
        tokio::select! {
            changed = keys.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(EXPIRY) => {}
        }
        if !keys.borrow_and_update().admits(chain) {
            return;
        }
    }
}

const EVERY: Duration = Duration::from_secs(1);
/// Certificates that expire while their links are up are noticed within this time.
const EXPIRY: Duration = Duration::from_secs(600);
