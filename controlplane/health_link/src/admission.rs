//! Who is let in: whether a peer's certificate is the authority's, good now, and not revoked.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::{
    AlgorithmIdentifier, CertificateDer, CertificateRevocationListDer, InvalidSignature,
    SignatureVerificationAlgorithm, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};

use crate::keys::provider;

/// Why nobody can be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmissionError {
    #[error(transparent)]
    Authority(#[from] VerifierBuilderError),
    #[error(transparent)]
    List(#[from] rustls::Error),
    #[error(transparent)]
    Unreadable(#[from] webpki::Error),
}

/// What webpki does with a revocation list, checking its signature anew for each certificate, is a fifth of what a handshake costs: here
/// that is done when the list is read.
#[derive(Debug)]
pub(crate) struct Admission {
    chain: Arc<dyn ClientCertVerifier>,
    /// Does the same but for the signatures: for chains whose signatures were verified.
    verified: Arc<dyn ClientCertVerifier>,
    lists: Vec<CertRevocationList<'static>>,
}

impl Admission {
    /// # Errors
    /// A list is none, or another authority's.
    pub(crate) fn new(
        roots: &Arc<RootCertStore>,
        revoked: &[CertificateRevocationListDer<'static>],
        own: &CertificateDer<'static>,
    ) -> Result<Admission, AdmissionError> {
        let built_with = |provider| WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider);
        // A list that is not the authority's shows with the node's own certificate, which is of the same issuer.
        let checked = built_with(provider())
            .with_crls(revoked.iter().cloned())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .build()?;
        if let Err(error @ rustls::Error::InvalidCertRevocationList(_)) =
            checked.verify_client_cert(own, &[], UnixTime::now())
        {
            return Err(error.into());
        }
        let lists = revoked.iter().map(|list| OwnedCertRevocationList::from_der(list).map(CertRevocationList::from));
        let lists = lists.collect::<Result<_, _>>()?;
        let without_signatures = WebPkiSupportedAlgorithms {
            all: &ALL_VERIFIED,
            ..ring::default_provider().signature_verification_algorithms
        };
        let provider_of_verified =
            CryptoProvider { signature_verification_algorithms: without_signatures, ..ring::default_provider() };
        let verified = built_with(Arc::new(provider_of_verified)).build()?;
        Ok(Admission { chain: built_with(provider()).build()?, verified, lists })
    }

    /// Judges a chain whose signatures were verified before.
    pub(crate) fn judge_verified(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(&*self.verified, end_entity, intermediates, now)
    }

    fn judge(
        &self,
        verifier: &dyn ClientCertVerifier,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = verifier.verify_client_cert(end_entity, intermediates, now)?;
        let certificate = EndEntityCert::try_from(end_entity).map_err(|_| CertificateError::BadEncoding)?;
        let is_named = |list: &CertRevocationList<'_>| {
            // What cannot be read is no reason to let anybody in.
            list.issuer() == certificate.issuer() && !matches!(list.find_serial(certificate.serial()), Ok(None))
        };
        if self.lists.iter().any(is_named) { Err(CertificateError::Revoked.into()) } else { Ok(verified) }
    }
}

impl ClientCertVerifier for Admission {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(&*self.chain, end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Stands for an algorithm where a signature was verified before.
#[derive(Debug)]
struct Verified(&'static dyn SignatureVerificationAlgorithm);

impl SignatureVerificationAlgorithm for Verified {
    fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.0.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.0.signature_alg_id()
    }
}

static EACH_VERIFIED: LazyLock<Vec<Verified>> = LazyLock::new(|| {
    ring::default_provider().signature_verification_algorithms.all.iter().copied().map(Verified).collect()
});
static ALL_VERIFIED: LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
    LazyLock::new(|| EACH_VERIFIED.iter().map(|each| each as &dyn SignatureVerificationAlgorithm).collect());
