//! What reaches the worker's packet sockets.

use crate::lab::{Egret, INTERNET, Lab, Options, Result};

#[test]
fn packet_for_a_device_on_top_of_the_external_interface_is_translated_once() -> Result {
    let lab = Lab::new(Options::default())?;
    let (router, host) = (lab.router(), lab.nat());
    // Each answers for its own addresses.
    host.run("sysctl -q -w net.ipv4.conf.all.arp_ignore=1")?;
    host.run("ip link add link ens5 name inside type macvlan mode bridge")?;
    host.run("ip address add 10.0.250.10/24 dev inside")?;
    host.run("ip link set inside up")?;
    router.run("ip address add 10.0.250.1/24 dev nat")?;
    router.run("ip route replace default via 10.0.250.10 dev nat table 100")?;
    host.run("ip route add 10.0.0.0/16 via 10.0.250.1 dev inside")?;
    let config = lab.config("").replace("internal_interface = \"ens5\"", "internal_interface = \"inside\"");
    let egret = Egret::start(host, &config)?;
    let ping = lab.client(1).run(&format!("ping -c 3 -i 0.2 -W 2 {INTERNET}"))?;
    assert!(ping.contains(" 0% packet loss") && !ping.contains("DUP"), "{ping}");
    let status = egret.status()?;
    let packets = |way: &str| status["traffic"][way]["packets"].as_u64();
    assert_eq!((packets("out_to_external"), packets("in_from_external")), (Some(3), Some(3)), "{status:#}");
    Ok(())
}

#[test]
fn chain_at_netdev_ingress_that_lets_the_tag_pass_lets_nat_pass() -> Result {
    let lab = Lab::new(Options::default())?;
    let host = lab.nat();
    let _egret = Egret::start(host, &lab.config(""))?;
    let chain = |accepted: &str| {
        host.nft(&format!(
            "table netdev closed\ndelete table netdev closed\ntable netdev closed {{\n chain in {{\n\
             type filter hook ingress device ens5 priority 0\n policy drop\n\
             ether type {{ {accepted} }} accept\n }}\n}}\n"
        ))
    };
    let ping = || lab.client(1).run(&format!("ping -c 2 -i 0.2 -W 2 {INTERNET}"));
    chain("arp, ip, 8021ad")?;
    assert!(ping()?.contains(" 0% packet loss"));
    chain("arp, ip")?;
    assert!(ping().is_err(), "the chain does not drop");
    Ok(())
}
