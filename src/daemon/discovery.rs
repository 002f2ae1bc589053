//! Who finds targets that are not given by address: DNS those with a name, EC2 those with a tag.

use super::cloud::Counted;
use crate::config::Switch;
use crate::forward::{Discover, DiscoverError, Finding, Found, Resolver, Source};

/// See the module.
#[derive(Debug)]
pub(super) struct Discovery {
    names: Resolver,
    tags: Tags,
}

impl Discovery {
    /// Asks EC2 only if AWS is on.
    pub(super) fn new(aws: Switch, counted: &Counted) -> Self {
        Self { names: Resolver::default(), tags: Tags::new(aws, counted) }
    }
}

impl Discover for Discovery {
    fn find<'a>(&'a self, source: &'a Source) -> Finding<'a> {
        match source {
            Source::Ec2Tag { key, value, port } => Box::pin(self.tags.find(key, value, *port)),
            Source::Dns { .. } => self.names.find(source),
        }
    }
}

#[cfg(feature = "aws")]
use with_aws::Tags;

#[cfg(feature = "aws")]
mod with_aws {
    use tokio::sync::OnceCell;

    use super::{Counted, DiscoverError, Found, Switch};
    use crate::aws::{self, Calls, Imds, Pace, TaggedInstances};

    /// Asks EC2, once it is known which VPC this is.
    #[derive(Debug)]
    pub(super) struct Tags {
        is_on: bool,
        imds: Imds,
        calls: Calls,
        instances: OnceCell<TaggedInstances>,
    }

    impl Tags {
        pub(super) fn new(aws: Switch, counted: &Counted) -> Self {
            let is_on = super::super::aws::is_on(aws);
            Self { is_on, imds: Imds::new(), calls: counted.calls.clone(), instances: OnceCell::new() }
        }

        pub(super) async fn find(&self, key: &str, value: &str, port: u16) -> Result<Found, DiscoverError> {
            let failed = |error: &dyn std::error::Error| DiscoverError::Failed(error.to_string());
            if !self.is_on {
                return Err(DiscoverError::Failed("AWS is not asked (aws.enabled)".to_owned()));
            }
            let instances = self.instances.get_or_try_init(async || {
                let instance = self.imds.instance().await?;
                let config = aws::sdk_config(&instance.region).await;
                let (vpc, calls) = (&instance.vpc, self.calls.clone());
                Ok::<_, aws::Error>(TaggedInstances::new(&config, vpc, calls, Pace::default()))
            });
            let instances = instances.await.map_err(|error: aws::Error| failed(&error))?;
            let (addresses, valid_for) = instances.find(key, value).await.map_err(|error| failed(&error))?;
            if addresses.is_empty() {
                return Err(DiscoverError::Failed("no running instance of this VPC has the tag".to_owned()));
            }
            let addresses = addresses.into_iter().map(|address| (address, port).into()).collect();
            Ok(Found { addresses, valid_for })
        }
    }
}

/// There is nobody to ask.
#[cfg(not(feature = "aws"))]
#[derive(Debug)]
struct Tags;

#[cfg(not(feature = "aws"))]
impl Tags {
    const fn new(_: Switch, _: &Counted) -> Self {
        Self
    }

    #[allow(clippy::unused_async, reason = "with AWS support it waits")]
    async fn find(&self, _: &str, _: &str, _: u16) -> Result<Found, DiscoverError> {
        Err(DiscoverError::Failed("this egret was built without AWS support".to_owned()))
    }
}
