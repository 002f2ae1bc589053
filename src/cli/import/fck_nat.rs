//! The keys of `/etc/fck-nat.conf`: <https://github.com/AndrewGuenther/fck-nat>.

use super::{Draft, Note, shown};
use crate::config::HOST_PORTS;

pub(super) const KEYS: &[&str] = &[
    "eni_id",
    "eip_id",
    "interface",
    "ip_local_port_range",
    "cwagent_enabled",
    "cwagent_cfg_param_name",
    "gwlb_enabled",
    "gwlb_health_check_port",
];

pub(super) fn import(draft: &mut Draft, key: &str, value: &str) {
    let about = shown(key, value);
    match key {
        "eip_id" => {
            draft.set(&about, "aws", "elastic_ips", vec![value.to_owned()]);
            draft.note(
                &about,
                "Egret takes the address when it is free, and never from another instance.\n\
                 Disassociate it from the old one when you change over.",
            );
        }
        "eni_id" => draft.note(&about, &fixed_interface(value)),
        "interface" => draft.set(&about, "nat", "external_interface", value.to_owned()),
        "ip_local_port_range" => ports(draft, &about, value),
        "cwagent_enabled" | "cwagent_cfg_param_name" => draft.note(
            &about,
            "There is no CloudWatch agent. Metrics are for Prometheus, at admin.listen;\n\
             docs/metrics.md says which stands for which of a NAT gateway's.",
        ),
        "gwlb_enabled" | "gwlb_health_check_port" => {
            draft.note(&about, "Egret does not stand behind a Gateway Load Balancer: it knows no GENEVE.");
        }
        _ => draft.note(&about, "Not a key of fck-nat that Egret knows."),
    }
}

/// The fixed interface moves from instance to instance, and routes lead to it.
fn fixed_interface(eni: &str) -> String {
    let is_id = eni.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let eni = if is_id { eni } else { "eni-..." };
    format!(
        "Egret attaches no interface: it leads the routes to its own. Set aws.route_tables to\n\
         the tables whose route leads to this one:\n  \
         aws ec2 describe-route-tables --output text \\\n    \
         --query \"RouteTables[?Routes[?NetworkInterfaceId=='{eni}']].RouteTableId\"\n\
         If the routes are to stay as they are, attach the interface by other means, and set\n\
         nat.internal_interface to its name (as in: ip -br link)."
    )
}

/// What fck-nat gives to the kernel's masquerading.
fn ports(draft: &mut Draft, about: &str, value: &str) {
    let mut numbers = value.split_whitespace().map(str::parse::<u16>);
    let (Some(Ok(low)), Some(Ok(high)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
        return draft.note(about, "Not two numbers of ports.");
    };
    let most = HOST_PORTS.start() - 1;
    if high > most {
        let says = format!("Ports from {} on are the host's own, and not NAT's.", HOST_PORTS.start());
        draft.note(about, &says);
    }
    draft.set(about, "nat", "port_range", format!("{low}-{}", high.min(most)));
}

/// What fck-nat does without a key.
pub(super) fn notes() -> Vec<Note> {
    let says = "Egret translates IPv4 only. IPv6-only subnets need another way out (NAT64 of a NAT gateway).";
    vec![Note { about: "NAT64".to_owned(), says: says.to_owned() }]
}
