//! `egret run --dry-run`: what would be done is printed, and nothing is.

use crate::daemon::{Cloud, gateway};
use crate::ec2::{ENI, OTHER_TABLE, TABLE};
use crate::lab::{Lab, Options, Result};

#[test]
fn what_would_be_changed_is_printed_and_nothing_is() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let ports = "sysctl -n net.ipv4.ip_local_port_range net.ipv4.ip_forward; ip -4 address show dev ens5";
    let (world, host) = (cloud.ec2(|ec2| ec2.world.clone()), lab.nat().run(ports)?);
    let output = cloud.run(lab.nat(), &gateway(), &["run", "--dry-run"])?;
    assert_eq!(output.status.code(), Some(0), "{output}");
    for line in [
        format!("would switch the source/dest check of {ENI} off"),
        format!("would create the route 0.0.0.0/0 of {TABLE} to {ENI}"),
        format!("would assign one more private address to {ENI}, for an Elastic IP"),
    ] {
        assert!(output.stdout.lines().any(|printed| printed == line), "{line}: {output}");
    }
    assert_eq!(cloud.ec2(|ec2| (ec2.world.clone(), ec2.calls.len(), ec2.writes())), (world, 3, 0));
    let json = cloud.run(lab.nat(), &gateway(), &["run", "--dry-run", "--output", "json"])?.success()?.stdout;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    assert_eq!((&json["aws"], &json["problems"]), (&true.into(), &serde_json::json!([])), "{json}");
    assert_eq!(json["changes"][0], format!("switch the source/dest check of {ENI} off"));
    assert_eq!(lab.nat().run(ports)?, host);
    Ok(())
}

#[test]
fn problems_are_told_apart_and_by_the_exit_code() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    cloud.ec2(|ec2| {
        *ec2.check(ENI) = false;
        ec2.set_route(OTHER_TABLE, "0.0.0.0/0", "igw-0123456789abcdef0", true);
    });
    let toml = format!("[aws]\nroute_tables = [\"{OTHER_TABLE}\"]");
    let output = cloud.run(lab.nat(), &toml, &["run", "--dry-run"])?;
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert_eq!(output.stdout, "nothing to change\n");
    assert!(output.stderr.contains("leads to igw-0123456789abcdef0"), "{output}");
    let output = cloud.run(lab.nat(), "[aws]\nenabled = false", &["run", "--dry-run"])?;
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), "aws is not asked (aws.enabled)\n"));
    Ok(())
}

/// By what the metadata service tells: the interface's second address, and the VPC's second prefix.
#[test]
fn whatever_the_daemon_would_refuse_is_refused() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    let listener = |listen: &str, target: &str| {
        format!(
            "[[forward]]\nname = \"api\"\nlisten = \"{listen}:443\"\nmode = \"nat\"\ntargets = [\"{target}:1\"]"
        )
    };
    let dry_run = |toml: &str| cloud.run(lab.nat(), toml, &["run", "--dry-run"]);
    dry_run(&listener("10.0.0.11", "100.64.0.5"))?.success()?;
    for (listen, target, reason) in [
        ("10.0.0.99", "10.0.1.10", "is no external address"),
        ("0.0.0.0", "10.99.0.1", "is in no internal prefix"),
    ] {
        let output = dry_run(&listener(listen, target))?;
        assert_eq!(output.status.code(), Some(1), "{output}");
        assert!(output.stderr.contains(reason), "{output}");
    }
    Ok(())
}

#[test]
fn a_cloud_that_does_not_answer_is_an_error_with_its_cause() -> Result {
    let lab = Lab::new(Options::default())?;
    let cloud = Cloud::start(lab.nat())?;
    cloud.ec2(|ec2| {
        ec2.fault = crate::ec2::Fault::Error("DescribeRouteTables", 403, "UnauthorizedOperation");
    });
    let output = cloud.run(lab.nat(), &gateway(), &["run", "--dry-run"])?;
    assert_eq!(output.status.code(), Some(1), "{output}");
    assert!(output.stderr.contains("does not allow ec2:DescribeRouteTables"), "{output}");
    Ok(())
}
