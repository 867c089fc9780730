//! What the CA writes into certificates, and how it keeps its keys.

use std::{fs, os::unix::fs::PermissionsExt};

use rcgen::{CertificateParams, KeyPair, KeyUsagePurpose, SanType};
use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::*;
use crate::identity::enrollment::REJOIN_WINDOW;
use crate::identity::verify::{Pinned, Trust, unix};
use rustls::client::danger::ServerCertVerifier;

fn id(path: &str) -> SpiffeId {
    format!("spiffe://attache.local/{path}").parse().unwrap()
}

fn fresh(names: Names) -> (tempfile::TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let domain = "attache.local".parse().unwrap();
    let authority = Authority::create(&dir.path().join("ca"), &domain, names).unwrap();
    (dir, authority)
}

fn names_of(der: &[u8]) -> Vec<String> {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let san = certificate.subject_alternative_name().unwrap().unwrap();
    let shown = san.value.general_names.iter().map(|name| {
        if let GeneralName::URI(text) | GeneralName::DNSName(text) = name {
            (*text).to_owned()
        } else {
            format!("{name:?}")
        }
    });
    shown.collect()
}

#[test]
fn a_leaf_is_shaped_as_other_stacks_want_it() {
    let (_dir, authority) = fresh(Names::Mesh);
    let billing = id("ns/default/agent/billing");
    let instance = "i1".parse().unwrap();
    let before = clock::wall();
    let svid = authority
        .svid(&billing, Some(&instance), LEAF_LIFE)
        .unwrap();
    assert_eq!(
        names_of(&svid.chain()[0]),
        [
            "spiffe://attache.local/ns/default/agent/billing",
            "i1.billing.default.agent.attache",
            "billing.default.agent.attache",
        ]
    );
    let peer = svid.peer();
    let since = before.duration_since(peer.not_before).unwrap();
    assert!((59..=61).contains(&since.as_secs()), "{since:?}");
    let left = peer.not_after.duration_since(before).unwrap();
    assert!((3598..=3601).contains(&left.as_secs()), "{left:?}");
    let (_, leaf) = X509Certificate::from_der(&svid.chain()[0]).unwrap();
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(
        !leaf
            .basic_constraints()
            .unwrap()
            .expect("explicit")
            .value
            .ca
    );
    let has = |found: fn(&ParsedExtension<'_>) -> bool| {
        leaf.extensions()
            .iter()
            .any(|one| found(one.parsed_extension()))
    };
    assert!(has(|one| matches!(
        one,
        ParsedExtension::AuthorityKeyIdentifier(_)
    )));
    assert!(has(|one| matches!(
        one,
        ParsedExtension::SubjectKeyIdentifier(_)
    )));
    for der in [&svid.chain()[1], &svid.bundle()[0]] {
        let (_, ca) = X509Certificate::from_der(der).unwrap();
        let usage = ca.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.key_cert_sign());
        let constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(constraints.critical && constraints.value.ca);
    }
}

#[test]
fn only_a_development_ca_names_this_machine() {
    let (_dir, authority) = fresh(Names::Development);
    let svid = authority
        .svid(&id("operator/ops"), None, ISSUED_LIFE)
        .unwrap();
    let names = names_of(&svid.chain()[0]);
    assert_eq!(
        names[..3],
        [
            "spiffe://attache.local/operator/ops",
            "ops.operator.attache",
            "localhost"
        ]
    );
    assert_eq!(names.len(), 5);
    assert_eq!(svid.peer().instance, None);
    let reopened = Authority::open(&authority.dir).unwrap();
    assert_eq!(reopened.names(), Names::Development);
}

#[test]
fn nothing_of_a_request_is_used_but_its_key() {
    let (_dir, authority) = fresh(Names::Mesh);
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.subject_alt_names = vec![
        SanType::URI("spiffe://attache.local/operator/root".try_into().unwrap()),
        SanType::DnsName("bank.example".try_into().unwrap()),
    ];
    let key = KeyPair::generate().unwrap();
    let csr = params.serialize_request(&key).unwrap();
    let asked = PublicKey::of_request(csr.der()).unwrap();
    let web = id("ns/default/service/web");
    let chain = authority.issue(&asked, &web, None, LEAF_LIFE).unwrap();
    assert_eq!(
        names_of(&chain[0]),
        [web.to_string().as_str(), "web.default.service.attache"]
    );
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(certificate::peer_of(&chain[0]).unwrap().key, asked.hash());
}

#[test]
fn foreign_ids_and_instances_of_operators_are_not_signed() {
    let (_dir, authority) = fresh(Names::Mesh);
    let foreign = "spiffe://other/ns/default/agent/a".parse().unwrap();
    let error = authority.svid(&foreign, None, LEAF_LIFE).unwrap_err();
    assert!(matches!(error, AuthorityError::Foreign { .. }), "{error}");
    let instance = "i1".parse().unwrap();
    let error = authority.svid(&id("operator/o"), Some(&instance), LEAF_LIFE);
    assert!(matches!(error, Err(AuthorityError::NoInstances(_))));
}

#[test]
fn no_leaf_outlives_the_issuing_ca() {
    let (_dir, authority) = fresh(Names::Mesh);
    let svid = authority
        .svid(&id("operator/o"), None, ISSUING_LIFE * 2)
        .unwrap();
    let (_, end) = certificate::validity(&svid.chain()[1]).unwrap();
    assert_eq!(svid.peer().not_after, end);
}

#[test]
fn keys_are_private_or_refused() {
    let (_dir, authority) = fresh(Names::Mesh);
    for name in ["root.key.pem", "issuing.pem"] {
        let path = authority.dir.join(name);
        let mode = |bits| fs::set_permissions(&path, fs::Permissions::from_mode(bits)).unwrap();
        let found = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(found & 0o777, 0o600, "{name}");
        mode(0o640);
        let error = Authority::open(&authority.dir).unwrap_err();
        assert!(matches!(
            error,
            AuthorityError::File(FileError::Exposed { .. })
        ));
        mode(0o600);
    }
    let again = Authority::create(&authority.dir, authority.trust_domain(), Names::Mesh);
    assert!(matches!(again, Err(AuthorityError::Exists(_))));
    let shown = format!("{authority:?}");
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

#[test]
fn an_ageing_issuing_ca_is_replaced_if_the_root_key_is_here() {
    let (_dir, authority) = fresh(Names::Mesh);
    let signer = |authority: &Authority| {
        let svid = authority.svid(&id("operator/o"), None, LEAF_LIFE).unwrap();
        svid.chain()[1].clone()
    };
    let first = signer(&authority);
    let now = clock::wall();
    assert!(!authority.roll_over(now + ISSUING_LIFE * 4 / 10).unwrap());
    assert!(authority.roll_over(now + ISSUING_LIFE / 2).unwrap());
    let ahead = authority.state.load().issuing.certificate.clone();
    assert_ne!(ahead, first);
    // The clock was ahead and is set back: with the root's key a CA is made that is valid now.
    assert!(authority.roll_over(now).unwrap());
    assert_ne!(authority.state.load().issuing.certificate, ahead);
    assert!(!authority.roll_over(now).unwrap());
    signer(&authority);

    fs::remove_file(authority.dir.join("root.key.pem")).unwrap();
    let offline = Authority::open(&authority.dir).unwrap();
    assert_eq!(
        offline.state.load().issuing.certificate,
        authority.state.load().issuing.certificate
    );
    assert!(!offline.roll_over(now + ISSUING_LIFE * 8 / 10).unwrap());
    let error = offline.roll_over(now + ISSUING_LIFE * 2).unwrap_err();
    assert!(matches!(error, AuthorityError::Expired(_)));
    let error = offline.roll_over(now - ISSUING_LIFE).unwrap_err();
    assert!(matches!(error, AuthorityError::NotYet(_)), "{error}");
}

/// Whether those who trust only these roots let a certificate in.
fn passes(svid: &Svid, roots: &[CertificateDer<'static>]) -> bool {
    let trust = Trust::new("attache.local".parse().unwrap(), roots).unwrap();
    let now = unix(svid.peer().not_before);
    let passed = trust.client(&svid.chain()[0], &svid.chain()[1..], now);
    passed.is_ok()
}

/// Whether who has only the pin of a root takes this for a registry.
fn is_found_by(svid: &Svid, pin: [u8; 32]) -> bool {
    let shown = &svid.shown(true).cert;
    let name = "attache".try_into().unwrap();
    let now = unix(svid.peer().not_before);
    let pinned = Pinned { root_key: pin };
    let found = pinned.verify_server_cert(&shown[0], &shown[1..], &name, &[], now);
    found.is_ok()
}

const STEP: Duration = Duration::from_secs(100);
const OVERLAP: Overlap = Overlap {
    prepare: STEP,
    keep: STEP,
};

#[test]
fn a_root_is_trusted_before_it_signs_and_the_last_one_goes_when_nothing_stands_on_it() {
    let (_dir, authority) = fresh(Names::Mesh);
    let registry = || authority.svid(&id("registry/r"), None, LEAF_LIFE).unwrap();
    let now = clock::wall();
    let (first, old) = (authority.bundle(), registry());
    let pin = authority.root_key_pin().unwrap();
    let mut told = authority.bundles();
    authority.rotate_root(OVERLAP, now).unwrap();
    assert!(told.has_changed().unwrap());
    let both = authority.bundle();
    assert_eq!((both.len(), &both[0]), (2, &first[0]));
    assert_eq!(told.borrow_and_update()[..], both[..]);
    let second = [both[1].clone()];
    assert!(passes(&registry(), &first) && !passes(&registry(), &second));
    assert_eq!(authority.root_key_pin().unwrap(), pin);
    // Whoever opens the directory sees the same, and one rotation is enough.
    let other = Authority::open(&authority.dir).unwrap();
    assert_eq!(other.bundle(), both);
    let again = other.rotate_root(OVERLAP, now).unwrap_err();
    assert!(matches!(again, AuthorityError::Prepared(2)), "{again}");

    let signs = now + STEP + Duration::from_secs(2);
    authority.refresh(signs).unwrap();
    assert_eq!(authority.bundle(), [second[0].clone(), first[0].clone()]);
    let new = registry();
    assert!(
        new.is_under_signing_root()
            && !old
                .trusting(new.bundle().to_vec(), Vec::new())
                .unwrap()
                .is_under_signing_root()
    );
    // Those who have not heard of it are led to it, as are those who have only a pin.
    assert!(passes(&new, &second) && passes(&new, &first));
    assert!(is_found_by(&new, pin) && is_found_by(&new, authority.root_key_pin().unwrap()));
    assert_ne!(authority.root_key_pin().unwrap(), pin);

    authority.refresh(signs + STEP).unwrap();
    assert_eq!(authority.bundle(), second);
    let new = registry();
    assert!(is_found_by(&new, pin), "who slept over it");
    assert!(!passes(&old, &authority.bundle()));
    assert!(authority.has_signed(old.chain(), old.peer().not_before));
    let forgotten = signs + STEP + REJOIN_WINDOW;
    authority.refresh(forgotten).unwrap();
    assert!(!authority.has_signed(old.chain(), old.peer().not_before));
    assert_eq!(registry().chain().len(), 2);
}

#[test]
fn a_root_whose_key_is_lost_is_rotated_all_the_same_but_leads_nobody() {
    let (_dir, authority) = fresh(Names::Mesh);
    let now = clock::wall();
    fs::remove_file(authority.dir.join("root.key.pem")).unwrap();
    let away = authority.rotate_issuing(now).unwrap_err();
    assert!(
        away.to_string().contains("root.key.pem is not here"),
        "{away}"
    );
    authority.rotate_root(OVERLAP, now).unwrap();
    let first = vec![authority.bundle()[0].clone()];
    // Its key is not needed any more either: the issuing CA is made already.
    fs::remove_file(authority.dir.join("root-2.key.pem")).unwrap();
    authority.refresh(now + STEP * 2).unwrap();
    let new = authority.svid(&id("registry/r"), None, LEAF_LIFE).unwrap();
    assert!(passes(&new, &authority.bundle()[..1]) && !passes(&new, &first));
}

#[test]
fn rotations_are_bounded_and_what_is_forgotten_is_removed() {
    let (_dir, authority) = fresh(Names::Mesh);
    let mut now = clock::wall();
    for wrong in [(Duration::ZERO, STEP), (STEP, ISSUING_LIFE * 2)] {
        let (prepare, keep) = wrong;
        let error = authority.rotate_root(Overlap { prepare, keep }, now);
        assert!(matches!(error, Err(AuthorityError::Overlap(_))));
    }
    for number in 2..=4 {
        authority.rotate_root(OVERLAP, now).unwrap();
        now += STEP * 2;
        clock::set::to(Some(now));
        authority.refresh(now).unwrap();
        assert_eq!(authority.roots().signing(now).number, number);
    }
    let error = authority.rotate_root(OVERLAP, now).unwrap_err();
    assert!(matches!(error, AuthorityError::Roots), "{error}");
    let new = authority.svid(&id("operator/o"), None, LEAF_LIFE).unwrap();
    assert_eq!(new.chain().len(), 5);
    assert!(passes(
        &new,
        &[authority.roots().all()[0].certificate.clone()]
    ));
    clock::set::to(None);
    now += STEP * 2 + REJOIN_WINDOW;
    authority.rotate_root(OVERLAP, now).unwrap();
    let left: Vec<_> = fs::read_dir(&authority.dir).unwrap().collect();
    let mut left: Vec<_> = left
        .into_iter()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("root") && !name.contains("-4"))
        .collect();
    left.sort();
    assert_eq!(left, ["root-5.cross.pem", "root-5.key.pem", "root-5.pem"]);
}

#[test]
fn another_issuing_ca_signs_at_once_in_every_process() {
    let (_dir, authority) = fresh(Names::Mesh);
    let other = Authority::open(&authority.dir).unwrap();
    let now = clock::wall();
    let first = authority.svid(&id("operator/o"), None, LEAF_LIFE).unwrap();
    other.rotate_issuing(now).unwrap();
    authority.refresh(now).unwrap();
    let second = authority.svid(&id("operator/o"), None, LEAF_LIFE).unwrap();
    assert_ne!(first.chain()[1], second.chain()[1]);
    assert_eq!(first.bundle(), second.bundle());
    assert_eq!(authority.concern(), None);
    // Nothing of the directory can be read: what was known stays.
    fs::write(authority.dir.join("ca.json"), "{").unwrap();
    authority.refresh(now).unwrap_err();
    authority.svid(&id("operator/o"), None, LEAF_LIFE).unwrap();
}
