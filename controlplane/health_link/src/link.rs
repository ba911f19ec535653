//! One connection: messages in datagrams and on one ordered stream each way.

use std::time::Duration;

use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::mpsc;
use weir_health_protocol::{Body, DecodeError, MESSAGE_MAX, Message, decode, encode};

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
    /// It is over.
    Down { link: u64 },
}

/// The driver's end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct LinkEnd {
    connection: Connection,
    ordered: mpsc::Sender<Vec<u8>>,
}

impl LinkEnd {
    /// Sends a message: heartbeats as they come, everything else in order.
    ///
    /// A peer that does not take them loses its connection: it would be told the truth by digests once it is back.
    pub(crate) fn send(&self, message: &Message) {
        let bytes = encode(message);
        let fits = self.connection.max_datagram_size().is_some_and(|most| bytes.len() <= most);
        if matches!(message.body, Body::Heartbeat(_)) && fits {
            let _ = self.connection.send_datagram(bytes.into());
        } else if self.ordered.try_send(bytes).is_err() {
            self.close("too slow");
        }
    }

    pub(crate) fn close(&self, why: &str) {
        self.connection.close(0_u32.into(), why.as_bytes());
    }

    /// The round trip, in microseconds.
    pub(crate) fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve(link: u64, connection: Connection, reports: mpsc::Sender<Report>, keys: CurrentKeys) {
    let identity = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok());
    let peer = identity.and_then(|chain| chain.first().cloned());
    let names = peer.as_ref().map(names).unwrap_or_default();
    let (ordered, outgoing) = mpsc::channel(ORDERED_MAX);
    let end = LinkEnd { connection: connection.clone(), ordered };
    if reports.send(Report::Up { link, names, end }).await.is_err() {
        return;
    }
    let sending = async {
        let stream = connection.open_uni().await?;
        send_all(stream, outgoing).await
    };
    let receiving = async {
        let stream = connection.accept_uni().await?;
        receive_all(link, stream, &reports).await
    };
    let datagrams = async {
        loop {
            let bytes = connection.read_datagram().await?;
            if !take(link, &bytes, &reports).await {
                return Ok(());
            }
        }
    };
    let end: Result<(), ConnectionError> = tokio::select! {
        end = sending => end,
        end = receiving => end,
        end = datagrams => end,
        () = until_refused(peer.as_ref(), keys) => {
            tracing::warn!(link, "the peer's certificate is revoked or has expired");
            Ok(())
        }
    };
    let why = end.err().map_or_else(|| "the protocol was not kept".to_owned(), |error| error.to_string());
    tracing::debug!(link, %why, "link ends");
    connection.close(1_u32.into(), b"bye");
    let _ = reports.send(Report::Down { link }).await;
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

async fn receive_all(link: u64, mut stream: RecvStream, reports: &mpsc::Sender<Report>) -> Result<(), ConnectionError> {
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
        let mut bytes = vec![0; length];
        if stream.read_exact(&mut bytes).await.is_err() || !take(link, &bytes, reports).await {
            return Ok(());
        }
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

/// So many messages may wait for a peer.
const ORDERED_MAX: usize = 4096;
