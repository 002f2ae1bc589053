//! What coturn's NAT behaviour discovery (RFC 5780) finds out.

use super::no_leaks;
use crate::lab::{Egret, INTERNET, Lab, Options, Result, Stun};

fn discovered(settings: &str) -> Result<String> {
    let lab = Lab::new(Options::default())?;
    let _stun = Stun::start(lab.internet())?;
    let _egret = Egret::start(lab.nat(), &lab.config(settings))?;
    let found = lab.client(1).run(&format!("turnutils_natdiscovery -m -f {INTERNET}"))?;
    no_leaks(&lab)?;
    Ok(found)
}

#[test]
fn by_default_mapping_is_endpoint_independent_and_filtering_address_and_port_dependent() -> Result {
    let found = discovered("")?;
    assert!(found.contains("NAT with Endpoint Independent Mapping!"), "{found}");
    assert!(found.contains("NAT with Address and Port Dependent Filtering!"), "{found}");
    Ok(())
}

#[test]
fn filtering_is_endpoint_independent_when_configured() -> Result {
    let found = discovered("filtering = \"endpoint-independent\"")?;
    assert!(found.contains("NAT with Endpoint Independent Mapping!"), "{found}");
    assert!(found.contains("NAT with Endpoint Independent Filtering!"), "{found}");
    Ok(())
}

#[test]
fn mapping_is_address_and_port_dependent_when_configured() -> Result {
    let found = discovered("mapping = \"address-and-port-dependent\"")?;
    assert!(found.contains("NAT with Address and Port Dependent Mapping!"), "{found}");
    assert!(found.contains("NAT with Address and Port Dependent Filtering!"), "{found}");
    Ok(())
}
