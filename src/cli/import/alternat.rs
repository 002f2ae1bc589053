//! The keys of `/etc/alternat.conf`: <https://github.com/chime/terraform-aws-alternat>.

use super::{Draft, Note, shown};

pub(super) const KEYS: &[&str] =
    &["eip_allocation_ids_csv", "route_table_ids_csv", "enable_ssm", "enable_cloudwatch_agent"];

pub(super) fn import(draft: &mut Draft, key: &str, value: &str) {
    let about = shown(key, value);
    let list = || value.split(',').map(|item| item.trim().to_owned()).collect::<Vec<_>>();
    match key {
        // One of them, in both: the first that is free.
        "eip_allocation_ids_csv" => {
            draft.set(&about, "aws", "elastic_ips", list());
            if list().len() > 1 {
                draft.note(
                    &about,
                    "One of them is taken, the first that is free. With a section [failover] all of them would\n\
                     belong to this gateway: leave to each its own.",
                );
            }
        }
        "route_table_ids_csv" => draft.set(&about, "aws", "route_tables", list()),
        "enable_ssm" | "enable_cloudwatch_agent" if value == "false" => {}
        "enable_ssm" => draft.note(&about, "Whether there is an SSM agent is the image's business."),
        "enable_cloudwatch_agent" => draft.note(
            &about,
            "There is no CloudWatch agent. Metrics are for Prometheus, at admin.listen;\n\
             docs/metrics.md says which stands for which of a NAT gateway's.",
        ),
        _ => draft.note(&about, "Not a key of alternat that Egret knows."),
    }
}

/// What alternat does without a key.
pub(super) fn notes() -> Vec<Note> {
    let says = "The standby NAT gateways are not in this file. With a section [failover], fallback_nat_gateway\n\
                names one. Remove alternat's functions first: they and Egret would write the same routes.";
    vec![Note { about: "NAT gateway".to_owned(), says: says.to_owned() }]
}
