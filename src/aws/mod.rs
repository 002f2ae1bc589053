//! What Egret knows from and asks of EC2: the identity of its network interface from the instance metadata
//! service; source/destination checks, routes and Elastic IPs from the API, kept as they are desired; what is about to happen to the
//! instance, and its lifecycle in an Auto Scaling group; instances by their tags; secrets in the Parameter Store.
//!
//! Nothing here is on a packet's path, and no error of an API ends anything: callers get an error or a state and
//! go on. Refused: version 1 of that service, answers that do not parse, retries without a bound on their rate.

mod call;
mod ec2;
mod fleet;
mod imds;
mod lifecycle;
mod notices;
mod parameter;
mod plan;
mod reconcile;
pub mod survey;
mod tagged;

use std::ffi::OsStr;
use std::path::Path;

use aws_config::Region;
pub use aws_config::{BehaviorVersion, SdkConfig};

pub use call::{Backoff, Calls, Failure, Outcome, once};
pub use ec2::{Association, Ec2, ElasticIp, NetworkInterface, PrivateAddress, Route, RouteTable, Tables};
pub use fleet::{Executor, NotDone, Place};
pub use imds::{Address, Error, Identity, Imds, Instance};
pub use lifecycle::{Lifecycle, Proceeded, Transition, Waits};
pub use notices::{Notice, Notices, SpotAction};
pub use parameter::{ParameterError, Parameters, Secret};
pub use plan::{Change, Desired, ElasticIps, Observed, Plan, Problem, Routes, plan};
pub use reconcile::{Check, HeldElasticIp, Reconciler, RouteState, State, Timing, Way, observe};
pub use tagged::{Pace, TaggedInstances};

/// Whether this machine is an EC2 instance, from files of the firmware and the hypervisor only: no packet is
/// sent. Also true when `AWS_EC2_METADATA_SERVICE_ENDPOINT` names another metadata service.
///
/// See <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/identify_ec2_instances.html>.
#[must_use]
pub fn on_ec2() -> bool {
    is_ec2(Path::new("/"), std::env::var_os("AWS_EC2_METADATA_SERVICE_ENDPOINT").as_deref())
}

/// The SDK's configuration as every AWS tool has it (environment, profile, the instance's role), in the region
/// that IMDS told. Makes no request: credentials are fetched with the first call.
pub async fn sdk_config(region: &str) -> SdkConfig {
    let region = Region::new(region.to_owned());
    aws_config::defaults(BehaviorVersion::latest()).region(region).load().await
}

fn is_ec2(root: &Path, imds_endpoint: Option<&OsStr>) -> bool {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).unwrap_or_default();
    imds_endpoint.is_some_and(|endpoint| !endpoint.is_empty())
        || ["sys/class/dmi/id/sys_vendor", "sys/class/dmi/id/board_vendor"]
            .iter()
            .any(|path| read(path).trim() == "Amazon EC2")
        // Xen instances have no such vendor in DMI on every generation, but this.
        || read("sys/hypervisor/uuid").to_ascii_lowercase().starts_with("ec2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_ec2_with(name: &str, file: &str, content: &str) -> bool {
        let root = std::env::temp_dir().join(format!("egret-on-ec2-{name}-{}", std::process::id()));
        let path = root.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        let answer = is_ec2(&root, None);
        std::fs::remove_dir_all(root).unwrap();
        answer
    }

    #[test]
    fn ec2_is_known_by_its_firmware_or_hypervisor() {
        assert!(is_ec2_with("system", "sys/class/dmi/id/sys_vendor", "Amazon EC2\n"));
        assert!(is_ec2_with("board", "sys/class/dmi/id/board_vendor", "Amazon EC2\n"));
        assert!(is_ec2_with("xen", "sys/hypervisor/uuid", "EC2E1916-9099-7CAF-FD21-012345ABCDEF\n"));
    }

    #[test]
    fn another_machine_is_not_ec2() {
        assert!(!is_ec2_with("vendor", "sys/class/dmi/id/sys_vendor", "QEMU\n"));
        assert!(!is_ec2_with("uuid", "sys/hypervisor/uuid", "00000000-0000-0000-0000-000000000ec2\n"));
        assert!(!is_ec2(Path::new("/nonexistent"), None));
        assert!(!is_ec2(Path::new("/nonexistent"), Some(OsStr::new(""))));
    }

    #[test]
    fn a_named_metadata_service_counts_as_ec2() {
        assert!(is_ec2(Path::new("/nonexistent"), Some(OsStr::new("http://127.0.0.1:1338"))));
    }
}
