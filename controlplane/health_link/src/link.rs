//! One connection: messages in datagrams and on one ordered stream each way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};
use weir_health_protocol::{DecodeError, MESSAGE_MAX, Message, decode, encode};

use crate::clock::some_of;
use crate::keys::{Names, names};
use crate::renewal::{CurrentKeys, until_refused};

/// What a connection says to the driver.
#[derive(Debug)]
pub(crate) enum Report {
    /// It is there, and proven to be these.
    Up { link: u64, names: Names, end: LinkEnd },
    /// A message came.
    Message { link: u64, message: Message },
    /// Bytes came that are none.
    Malformed { error: DecodeError },
    /// A message has to wait: there are too many from there.
    Flood,
    /// It is over.
    Down { link: u64 },
}

/// The driver's end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct LinkEnd {
    connection: Connection,
    ordered: mpsc::Sender<Vec<u8>>,
    watched: Option<Arc<Watched>>,
}

/// Has anything come back since something was sent?
#[derive(Debug, Default)]
struct Watched {
    waits: AtomicBool,
    received: AtomicU64,
    sent: Notify,
}

impl LinkEnd {
    /// Sends a message: what may be lost as it comes, everything else in order.
    ///
    /// A peer that does not take them loses its connection: it would be told the truth by digests once it is back.
    pub(crate) fn send(&self, message: &Message) {
        let bytes = encode(message);
        if let Some(watched) = &self.watched
            && !watched.waits.swap(true, Ordering::Relaxed)
        {
            watched.received.store(self.connection.stats().udp_rx.datagrams, Ordering::Relaxed);
            watched.sent.notify_one();
        }
        let fits = self.connection.max_datagram_size().is_some_and(|most| bytes.len() <= most);
        if message.is_transient() && fits {
            let _ = self.connection.send_datagram(bytes.into());
        } else if self.ordered.try_send(bytes).is_err() {
            self.close("too slow");
        }
    }

    pub(crate) fn close(&self, why: &str) {
        self.connection.close(0_u32.into(), why.as_bytes());
    }

    /// Was it dialled from here?
    pub(crate) fn is_client(&self) -> bool {
        self.connection.side() == quinn::Side::Client
    }

    /// The round trip, in microseconds.
    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }
}

/// Ends a connection when nothing comes back for a second after something was sent: sooner than its silence would.
async fn watch(end: LinkEnd) -> ConnectionError {
    let Some(watched) = &end.watched else { return end.connection.closed().await };
    loop {
        watched.sent.notified().await;
        loop {
            let begun = Instant::now();
            sleep(ANSWER).await;
            // Who is late itself has not looked at what has come, and cannot say that there is nothing.
            if begun.elapsed() < ANSWER + LATE {
                break;
            }
        }
        if end.connection.stats().udp_rx.datagrams == watched.received.load(Ordering::Relaxed) {
            end.close("no answer");
            return ConnectionError::TimedOut;
        }
        watched.waits.store(false, Ordering::Relaxed);
    }
}

/// Serves a connection until it ends. One that was dialled is `watched`.
pub(crate) async fn serve(
    link: u64,
    connection: Connection,
    watched: bool,
    reports: mpsc::Sender<Report>,
    keys: CurrentKeys,
) {
    let chain = chain(&connection);
    let names = chain.first().map(names).unwrap_or_default();
    let (ordered, outgoing) = mpsc::channel(ORDERED_MAX);
    let watched = watched.then(Arc::default);
    let end = LinkEnd { connection: connection.clone(), ordered, watched };
    let watching = watch(end.clone());
    // Units pass on what many hosts say.
    let limited = names.unit.is_none();
    let is_to_unit = end.is_client() && names.unit.is_some();
    if reports.send(Report::Up { link, names, end }).await.is_err() {
        return;
    }
    let sending = async {
        let stream = connection.open_uni().await?;
        send_all(stream, outgoing).await
    };
    let receiving = async {
        let stream = connection.accept_uni().await?;
        receive_all(link, stream, Rate::new(limited), &reports).await
    };
    let datagrams = async {
        let mut rate = Rate::new(limited);
        loop {
            let bytes = connection.read_datagram().await?;
            rate.wait(&reports).await;
            if !take(link, &bytes, &reports).await {
                return Ok(());
            }
        }
    };
    // A host goes on with a new ticket before the last one is too old: with it, it comes back cheaply when its unit begins anew.
    let lasts = if is_to_unit { some_of(LASTS) } else { Duration::MAX };
    let end: Result<(), ConnectionError> = tokio::select! {
        end = sending => end,
        end = receiving => end,
        end = datagrams => end,
        end = watching => Err(end),
        () = until_refused(&chain, keys) => {
            tracing::warn!(link, "the peer's certificate is revoked or has expired");
            Ok(())
        }
        () = sleep(lasts) => Err(ConnectionError::LocallyClosed),
    };
    let why = end.err().or_else(|| connection.close_reason());
    let why = why.map_or_else(|| "not admitted, or its stream ended".to_owned(), |why| why.to_string());
    tracing::debug!(link, %why, "link ends");
    connection.close(1_u32.into(), b"bye");
    let _ = reports.send(Report::Down { link }).await;
}

/// The peer's certificate, and what is between it and the authority.
pub(crate) fn chain(connection: &Connection) -> Vec<CertificateDer<'static>> {
    connection.peer_identity().and_then(|identity| identity.downcast().ok()).map_or_else(Vec::new, |chain| *chain)
}

async fn send_all(mut stream: SendStream, mut outgoing: mpsc::Receiver<Vec<u8>>) -> Result<(), ConnectionError> {
    while let Some(bytes) = outgoing.recv().await {
        let length = u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes();
        if stream.write_all(&length).await.is_err() || stream.write_all(&bytes).await.is_err() {
            return Ok(());
        }
    }
    let _ = stream.finish();
    Ok(())
}

async fn receive_all(
    link: u64,
    mut stream: RecvStream,
    mut rate: Rate,
    reports: &mpsc::Sender<Report>,
) -> Result<(), ConnectionError> {
    loop {
        let mut length = [0; 4];
        if stream.read_exact(&mut length).await.is_err() {
            return Ok(());
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MESSAGE_MAX {
            let _ = reports.send(Report::Malformed { error: DecodeError::Long(length) }).await;
            return Ok(());
        }
        rate.wait(reports).await;
        let mut bytes = vec![0; length];
        if stream.read_exact(&mut bytes).await.is_err() || !take(link, &bytes, reports).await {
            return Ok(());
        }
    }
}

/// How many messages a host may send: whoever sends more waits, and what it sends meanwhile fills its own buffers.
struct Rate {
    limited: bool,
    tokens: u32,
    filled: Instant,
}

impl Rate {
    fn new(limited: bool) -> Rate {
        Rate { limited, tokens: BURST, filled: Instant::now() }
    }

    async fn wait(&mut self, reports: &mpsc::Sender<Report>) {
        if self.tokens == 0 && self.limited {
            let new = self.filled.elapsed().as_millis() / EVERY.as_millis();
            self.tokens = u32::try_from(new).unwrap_or(BURST).min(BURST);
            self.filled = Instant::now();
            if self.tokens == 0 {
                let _ = reports.send(Report::Flood).await;
                sleep(EVERY).await;
            }
        }
        self.tokens = self.tokens.saturating_sub(1);
    }
}

/// Hands a message on; false if the connection is to end.
async fn take(link: u64, bytes: &[u8], reports: &mpsc::Sender<Report>) -> bool {
    match decode(bytes) {
        Ok(message) => reports.send(Report::Message { link, message }).await.is_ok(),
        // Whoever sends what is no message has another idea of the protocol: there is nothing to be had from more of it.
        Err(error) => {
            let _ = reports.send(Report::Malformed { error }).await;
            false
        }
    }
}

/// Whatever is sent is acknowledged within that time, or there is nobody.
pub(crate) const ANSWER: Duration = Duration::from_secs(1);
/// A link to a unit lasts for half of that at least.
const LASTS: Duration = Duration::from_secs(5 * 24 * 3600);
const LATE: Duration = Duration::from_millis(200);
/// So many messages may come at once, and then one in each of these times.
pub(crate) const BURST: u32 = 1_000;
pub(crate) const EVERY: Duration = Duration::from_millis(2);
/// So many messages may wait for a peer.
pub(crate) const ORDERED_MAX: usize = 4096;
