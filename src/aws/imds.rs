//! Who we are, from the instance metadata service, version 2 only.
//!
//! Tokens, their renewal and the endpoint (`AWS_EC2_METADATA_SERVICE_ENDPOINT`) are the SDK's. Here each answer is
//! parsed once; one that is too long or does not parse is an error that names its path, never a guess.
//! Categories: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/ec2-instance-metadata.html>.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use aws_config::imds::Client;
use aws_config::imds::client::error::ImdsError;
use ipnet::Ipv4Net;

/// A client of the instance metadata service. Cheap to clone; keeps its token.
#[derive(Clone, Debug)]
pub struct Imds {
    client: Client,
}

/// What the metadata service says of one network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `eu-west-1`, ...
    pub region: String,
    /// `eni-...`
    pub eni: String,
    /// `vpc-...`
    pub vpc: String,
    /// All IPv4 CIDR blocks of the VPC; at least one, host bits zero.
    pub vpc_cidrs: Vec<Ipv4Net>,
    /// The interface's addresses in the order of the service, which puts the primary one first; at least one.
    pub addresses: Vec<Address>,
}

/// What the metadata service says of the instance as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `i-...`
    pub id: String,
    /// `eu-west-1`, ...
    pub region: String,
    /// `eu-west-1a`, ...
    pub availability_zone: String,
    /// `vpc-...`, the primary interface's.
    pub vpc: String,
    /// Empty as well if the instance does not let its tags be told.
    pub tags: BTreeMap<String, String>,
}

/// A private address of the interface and the public one that the internet gateway maps to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub private: Ipv4Addr,
    pub public: Option<Ipv4Addr>,
}

/// Why there is no identity. All but `UnknownInterface` and `Malformed` are worth another try.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the metadata service knows no interface with the MAC address {0}")]
    UnknownInterface(String),
    #[error("the metadata service gives no {0}")]
    Missing(String),
    #[error("the metadata service answers {status} for {path}")]
    Status { path: String, status: u16 },
    #[error("the metadata service cannot be read ({path}); in a container its hop limit must be 2")]
    Request { path: String, source: Box<ImdsError> },
    #[error("the metadata service has not answered within {0:?}")]
    Timeout(Duration),
    #[error("the metadata service's {path} is malformed: {value:?}")]
    Malformed { path: String, value: String },
}

impl Imds {
    /// The service of this instance, or the one that the environment or the profile names.
    #[must_use]
    pub fn new() -> Self {
        Self { client: builder().build() }
    }

    /// The service at `endpoint`, a URL.
    ///
    /// # Errors
    /// The URL does not parse.
    pub fn at(endpoint: &str) -> Result<Self, Error> {
        let malformed = |_| Error::Malformed { path: "endpoint".into(), value: endpoint.into() };
        Ok(Self { client: builder().endpoint(endpoint).map_err(malformed)?.build() })
    }

    /// The identity of the interface with this MAC address; at most 5 s.
    ///
    /// # Errors
    /// The service cannot be reached, does not know the interface, or answers something malformed.
    pub async fn identity(&self, mac: [u8; 6]) -> Result<Identity, Error> {
        tokio::time::timeout(WHOLE_TIMEOUT, self.read_identity(mac))
            .await
            .unwrap_or(Err(Error::Timeout(WHOLE_TIMEOUT)))
    }

    /// The instance itself; at most 5 s.
    ///
    /// # Errors
    /// The service cannot be reached, or answers something malformed.
    pub async fn instance(&self) -> Result<Instance, Error> {
        tokio::time::timeout(WHOLE_TIMEOUT, self.read_instance())
            .await
            .unwrap_or(Err(Error::Timeout(WHOLE_TIMEOUT)))
    }

    /// The instance's tags whose keys begin with `prefix`; at most 5 s. None if the instance does not let its tags be
    /// told.
    ///
    /// # Errors
    /// The service cannot be reached, or answers something malformed.
    pub async fn tags(&self, prefix: &str) -> Result<BTreeMap<String, String>, Error> {
        tokio::time::timeout(WHOLE_TIMEOUT, self.read_tags(prefix))
            .await
            .unwrap_or(Err(Error::Timeout(WHOLE_TIMEOUT)))
    }

    async fn read_tags(&self, prefix: &str) -> Result<BTreeMap<String, String>, Error> {
        let mut tags = BTreeMap::new();
        for key in self.list(TAGS, tag_key).await? {
            if !key.starts_with(prefix) {
                continue;
            }
            // One that was taken away since the list was made is none.
            if let Some(value) = self.get(&format!("{TAGS}/{key}")).await? {
                tags.insert(key, value);
            }
        }
        Ok(tags)
    }

    async fn read_instance(&self) -> Result<Instance, Error> {
        let id = self.one("instance-id", |value| resource_id("i-", value)).await?;
        let region = self.one("placement/region", placement).await?;
        let availability_zone = self.one("placement/availability-zone", placement).await?;
        let mac = self.one("mac", mac_address).await?;
        let path = format!("network/interfaces/macs/{mac}/vpc-id");
        let vpc = self.one(&path, |value| resource_id("vpc-", value)).await?;
        let tags = self.read_tags("").await?;
        Ok(Instance { id, region, availability_zone, vpc, tags })
    }

    async fn read_identity(&self, mac: [u8; 6]) -> Result<Identity, Error> {
        let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
        let interface = format!("network/interfaces/macs/{mac}");
        let path = format!("{interface}/interface-id");
        let eni = self.get(&path).await?.ok_or(Error::UnknownInterface(mac))?;
        let eni = parse(&path, &eni, |value| resource_id("eni-", value))?;
        let vpc = self.one(&format!("{interface}/vpc-id"), |value| resource_id("vpc-", value)).await?;
        let region = self.one("placement/region", placement).await?;
        let vpc_cidrs = self.some(&format!("{interface}/vpc-ipv4-cidr-blocks"), network).await?;
        let private = self.some(&format!("{interface}/local-ipv4s"), from_str).await?;
        let mut addresses: Vec<_> =
            private.into_iter().map(|private| Address { private, public: None }).collect();
        for public in self.list(&format!("{interface}/public-ipv4s"), from_str).await? {
            let path = format!("{interface}/ipv4-associations/{public}");
            // None at all: it was taken away since the list was made.
            for private in self.list(&path, from_str::<Ipv4Addr>).await? {
                addresses
                    .iter_mut()
                    .find(|address| address.private == private)
                    .ok_or_else(|| Error::Malformed { path: path.clone(), value: private.to_string() })?
                    .public = Some(public);
            }
        }
        Ok(Identity { region, eni, vpc, vpc_cidrs, addresses })
    }

    /// The text at `path`; none if there is no such path.
    pub(super) async fn get(&self, path: &str) -> Result<Option<String>, Error> {
        match self.client.get(format!("/latest/meta-data/{path}")).await {
            Ok(text) if text.as_ref().len() > MAX_ANSWER_BYTES => {
                Err(Error::Malformed { path: path.into(), value: shortened(text.as_ref()) })
            }
            Ok(text) => Ok(Some(text.into())),
            Err(ImdsError::ErrorResponse(answer)) => match answer.response().status().as_u16() {
                404 => Ok(None),
                status => Err(Error::Status { path: path.into(), status }),
            },
            Err(source) => Err(Error::Request { path: path.into(), source: Box::new(source) }),
        }
    }

    async fn one<T>(&self, path: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
        let text = self.get(path).await?.ok_or_else(|| Error::Missing(path.into()))?;
        parse(path, &text, read)
    }

    /// One value a line; an absent path is an empty list.
    async fn list<T>(&self, path: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Error> {
        let text = self.get(path).await?.unwrap_or_default();
        text.lines().map(|line| parse(path, line, &read)).collect()
    }

    async fn some<T>(&self, path: &str, read: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, Error> {
        let values = self.list(path, read).await?;
        if values.is_empty() { Err(Error::Missing(path.into())) } else { Ok(values) }
    }
}

impl Default for Imds {
    fn default() -> Self {
        Self::new()
    }
}

fn builder() -> aws_config::imds::client::Builder {
    Client::builder()
        .connect_timeout(Duration::from_secs(1))
        .read_timeout(Duration::from_secs(1))
        .operation_timeout(Duration::from_secs(3))
        .max_attempts(2)
}

fn parse<T>(path: &str, value: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Error> {
    read(value.trim()).ok_or_else(|| Error::Malformed { path: path.into(), value: shortened(value) })
}

fn from_str<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

fn network(value: &str) -> Option<Ipv4Net> {
    from_str(value).filter(|network: &Ipv4Net| network.addr() == network.network())
}

fn resource_id(prefix: &str, value: &str) -> Option<String> {
    let digits = value.strip_prefix(prefix)?;
    let valid = (8..=17).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| value.to_owned())
}

// A region becomes part of a host name.
fn placement(value: &str) -> Option<String> {
    let valid = (1..=32).contains(&value.len())
        && value.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    valid.then(|| value.to_owned())
}

fn mac_address(value: &str) -> Option<String> {
    let octets: Vec<&str> = value.split(':').collect();
    let is_octet = |octet: &&str| octet.len() == 2 && octet.bytes().all(|byte| byte.is_ascii_hexdigit());
    (octets.len() == 6 && octets.iter().all(is_octet)).then(|| value.to_owned())
}

// It becomes part of a path. Tags with other keys are not told by the service:
// https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html
fn tag_key(value: &str) -> Option<String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"+-=.,_:@".contains(&byte);
    let valid = (1..=128).contains(&value.len()) && value.bytes().all(good) && value != "." && value != "..";
    valid.then(|| value.to_owned())
}

pub(super) fn shortened(value: &str) -> String {
    value.chars().take(80).collect()
}

const TAGS: &str = "tags/instance";
const WHOLE_TIMEOUT: Duration = Duration::from_secs(5);
// The longest true answer is a list of some 50 addresses of 16 bytes.
const MAX_ANSWER_BYTES: usize = 4096;
