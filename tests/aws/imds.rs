use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use egret::aws::{Address, Error, Identity, Imds, Instance};

use crate::http::{Answer, Request, serve};

pub const MAC: [u8; 6] = [0x02, 0x29, 0x96, 0x8f, 0x6a, 0x2d];
pub const INTERFACE: &str = "network/interfaces/macs/02:29:96:8f:6a:2d";
pub const TOKEN: &str = "AQAEAFTNrA4eEGx0AQgJ1arIq_Cc-t4tWt3fB0Hd8RKhXlKc5ccvhg==";

pub type Tree = HashMap<String, String>;

/// An interface with a primary address that has a public one, and a secondary that has none.
pub fn tree() -> Tree {
    let of_interface = [
        ("interface-id", "eni-0123456789abcdef0"),
        ("vpc-id", "vpc-0a1b2c3d4e5f60718"),
        ("vpc-ipv4-cidr-blocks", "10.0.0.0/16\n100.64.0.0/20"),
        ("local-ipv4s", "10.0.0.10\n10.0.0.11"),
        ("public-ipv4s", "203.0.113.7"),
        ("ipv4-associations/203.0.113.7", "10.0.0.10"),
    ];
    let mut tree: Tree =
        of_interface.iter().map(|(path, text)| (format!("{INTERFACE}/{path}"), (*text).to_owned())).collect();
    for (path, text) in [
        ("placement/region", "eu-west-1"),
        ("placement/availability-zone", "eu-west-1a"),
        ("instance-id", "i-0123456789abcdef0"),
        ("mac", "02:29:96:8f:6a:2d"),
    ] {
        tree.insert(path.to_owned(), text.to_owned());
    }
    tree
}

/// What the metadata service tells an instance with a role.
pub fn tree_with_role() -> Tree {
    let mut tree = tree();
    let role = "iam/security-credentials/";
    tree.insert(role.to_owned(), "egret".to_owned());
    let credentials = r#"{"Code": "Success", "Type": "AWS-HMAC", "LastUpdated": "2026-01-01T00:00:00Z",
        "AccessKeyId": "ASIAEXAMPLE", "SecretAccessKey": "secret", "Token": "token",
        "Expiration": "2099-01-01T00:00:00Z"}"#;
    tree.insert(format!("{role}egret"), credentials.to_owned());
    tree
}

pub fn answer(tree: &Tree, request: &Request) -> Answer {
    if request.path == "/latest/api/token" {
        return match (request.method.as_str(), request.header("x-aws-ec2-metadata-token-ttl-seconds")) {
            ("PUT", Some(_)) => {
                Answer::Http(200, "x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n", TOKEN.to_owned())
            }
            _ => Answer::Http(400, "", String::new()),
        };
    }
    if request.header("x-aws-ec2-metadata-token") != Some(TOKEN) {
        return Answer::Http(401, "", String::new());
    }
    match request.path.strip_prefix("/latest/meta-data/").and_then(|path| tree.get(path)) {
        Some(text) => Answer::Http(200, "", text.clone()),
        None => Answer::Http(404, "", String::new()),
    }
}

async fn identity_in(tree: Tree) -> Result<Identity, Error> {
    let address = serve(move |request| answer(&tree, request)).await;
    Imds::at(&format!("http://{address}")).unwrap().identity(MAC).await
}

/// The identity when one path of the interface has this text.
async fn identity_with(path: &str, text: &str) -> Result<Identity, Error> {
    let mut tree = tree();
    tree.insert(format!("{INTERFACE}/{path}"), text.to_owned());
    identity_in(tree).await
}

#[tokio::test]
async fn identity_has_the_interface_its_network_and_its_addresses() {
    let identity = identity_in(tree()).await.unwrap();
    let expected = Identity {
        region: "eu-west-1".into(),
        eni: "eni-0123456789abcdef0".into(),
        vpc: "vpc-0a1b2c3d4e5f60718".into(),
        vpc_cidrs: vec!["10.0.0.0/16".parse().unwrap(), "100.64.0.0/20".parse().unwrap()],
        addresses: vec![
            Address { private: "10.0.0.10".parse().unwrap(), public: Some("203.0.113.7".parse().unwrap()) },
            Address { private: "10.0.0.11".parse().unwrap(), public: None },
        ],
    };
    assert_eq!(identity, expected);
}

/// The instance when some paths have these texts.
async fn instance_with(more: &[(&str, &str)]) -> Result<Instance, Error> {
    let mut tree = tree();
    tree.extend(more.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())));
    let address = serve(move |request| answer(&tree, request)).await;
    Imds::at(&format!("http://{address}")).unwrap().instance().await
}

#[tokio::test]
async fn the_instance_has_its_place_and_its_tags_if_they_may_be_told() {
    let mut expected = Instance {
        id: "i-0123456789abcdef0".into(),
        region: "eu-west-1".into(),
        availability_zone: "eu-west-1a".into(),
        vpc: "vpc-0a1b2c3d4e5f60718".into(),
        tags: BTreeMap::new(),
    };
    assert_eq!(instance_with(&[]).await.unwrap(), expected);
    let tags = [
        ("tags/instance", "Name\negret:gateway\ngone"),
        ("tags/instance/Name", " a name "),
        ("tags/instance/egret:gateway", "az-a"),
    ];
    expected.tags = [("Name", " a name "), ("egret:gateway", "az-a")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    assert_eq!(instance_with(&tags).await.unwrap(), expected);
}

#[tokio::test]
async fn only_tags_that_are_asked_for_are_read() {
    let mut tree = tree();
    for (path, text) in [
        ("tags/instance", "Name\negret:nat.mapping\negret:gone"),
        ("tags/instance/egret:nat.mapping", "endpoint-independent"),
    ] {
        tree.insert(path.to_owned(), text.to_owned());
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let address = serve(move |request| {
        if request.path.contains("/tags/instance/") {
            count.fetch_add(1, Ordering::Relaxed);
        }
        answer(&tree, request)
    })
    .await;
    let tags = Imds::at(&format!("http://{address}")).unwrap().tags("egret:").await.unwrap();
    let expected = [("egret:nat.mapping".to_owned(), "endpoint-independent".to_owned())];
    assert_eq!(tags, expected.into());
    assert_eq!(asked.load(Ordering::Relaxed), 2, "the one that is gone, and the one that is there");
}

#[tokio::test]
async fn an_instance_that_is_malformed_is_refused_and_named() {
    for (path, text) in [
        ("instance-id", "eni-0123456789abcdef0"),
        ("instance-id", ""),
        ("placement/availability-zone", "eu-west-1a/../"),
        ("mac", "02:29:96:8f:6a"),
        ("mac", "../../../iam/xx:y"),
        ("tags/instance", "Name\n../../iam"),
        ("tags/instance", "Name\n.."),
    ] {
        let error = instance_with(&[(path, text)]).await.unwrap_err();
        assert!(matches!(&error, Error::Malformed { path: named, .. } if named == path), "{text:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_instance_without_public_address_has_an_identity() {
    let mut tree = tree();
    tree.retain(|path, _| !path.contains("public-ipv4s") && !path.contains("ipv4-associations"));
    let identity = identity_in(tree).await.unwrap();
    assert!(identity.addresses.iter().all(|address| address.public.is_none()));
    assert_eq!(identity.addresses.len(), 2);
}

#[tokio::test]
async fn a_token_is_fetched_once_and_sent_with_every_request() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let (put, denied, tree) = (Arc::clone(&tokens), Arc::clone(&refused), tree());
    let address = serve(move |request| {
        put.fetch_add(usize::from(request.method == "PUT"), Ordering::Relaxed);
        let answer = answer(&tree, request);
        denied.fetch_add(usize::from(matches!(answer, Answer::Http(401, ..))), Ordering::Relaxed);
        answer
    })
    .await;
    let imds = Imds::at(&format!("http://{address}")).unwrap();
    imds.identity(MAC).await.unwrap();
    imds.identity(MAC).await.unwrap();
    assert_eq!(tokens.load(Ordering::Relaxed), 1);
    assert_eq!(refused.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_service_that_gives_no_token_is_an_error() {
    let tree = tree();
    let address = serve(move |request| match request.method.as_str() {
        "PUT" => Answer::Http(403, "", String::new()),
        _ => answer(&tree, request),
    })
    .await;
    let error = Imds::at(&format!("http://{address}")).unwrap().identity(MAC).await.unwrap_err();
    assert!(matches!(error, Error::Request { .. }), "{error:?}");
}

#[tokio::test]
async fn an_unknown_interface_is_named() {
    let address = serve(|request| answer(&tree(), request)).await;
    let error = Imds::at(&format!("http://{address}")).unwrap().identity([2, 0, 0, 0, 0, 1]).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the metadata service knows no interface with the MAC address 02:00:00:00:00:01"
    );
}

#[tokio::test]
async fn malformed_answers_are_refused_and_named() {
    let long = "10.0.0.0/16\n".repeat(1000);
    for (path, text) in [
        ("interface-id", "<html>"),
        ("interface-id", "eni-"),
        ("interface-id", "eni-01234567/../.."),
        ("vpc-id", "eni-0123456789abcdef0"),
        ("vpc-ipv4-cidr-blocks", "10.0.0.0/33"),
        ("vpc-ipv4-cidr-blocks", "10.0.0.1/16"),
        ("vpc-ipv4-cidr-blocks", "2001:db8::/56"),
        ("vpc-ipv4-cidr-blocks", long.as_str()),
        ("local-ipv4s", "10.0.0.10\n10.0.0.256"),
        ("local-ipv4s", "10.0.0.10\n\n10.0.0.11"),
        ("public-ipv4s", "../../iam"),
        ("ipv4-associations/203.0.113.7", "10.0.0.99"),
    ] {
        let error = identity_with(path, text).await.unwrap_err();
        let named = format!("{INTERFACE}/{path}");
        assert!(matches!(&error, Error::Malformed { path, .. } if *path == named), "{text:?}: {error:?}");
        assert!(error.to_string().len() < 300, "{error}");
    }
    let mut tree = tree();
    tree.insert("placement/region".into(), "eu-west-1.example.com/".into());
    assert!(matches!(identity_in(tree).await, Err(Error::Malformed { .. })));
}

#[tokio::test]
async fn what_must_be_there_is_missed() {
    for path in ["vpc-id", "vpc-ipv4-cidr-blocks", "local-ipv4s"] {
        let mut tree = tree();
        let path = format!("{INTERFACE}/{path}");
        tree.remove(&path);
        let error = identity_in(tree).await.unwrap_err();
        assert!(matches!(&error, Error::Missing(missing) if *missing == path), "{error:?}");
    }
    assert!(matches!(identity_with("local-ipv4s", "").await, Err(Error::Missing(_))));
}

#[tokio::test]
async fn a_silent_service_is_given_up_within_seconds() {
    let address = serve(|_| Answer::Silence).await;
    let start = Instant::now();
    assert!(Imds::at(&format!("http://{address}")).unwrap().identity(MAC).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}
