//! Which keys exist, which of them are lists, and what was probably meant by one that does not exist.

use super::reader::{Reader, Section, alternatives};

/// Every section with its keys. A key that is itself a section is looked into.
const SECTIONS: &[(&str, &[&str])] = &[
    ("", &["datapath", "xdp", "nat", "forward", "aws", "failover", "admin", "session_log"]),
    ("xdp", &["adjust_mtu"]),
    (
        "nat",
        &[
            "external_interface",
            "internal_interface",
            "internal",
            "bypass",
            "external_addresses",
            "port_range",
            "mapping",
            "filtering",
            "on_exhaustion",
            "profile",
            "external_mtu",
            "mss_clamp",
            "answer_unsolicited_syn",
            "timeouts",
            "limits",
        ],
    ),
    ("nat.timeouts", &["tcp_established", "tcp_transitory", "udp", "udp_unreplied", "icmp_query", "other"]),
    ("nat.limits", &["sessions", "sessions_per_address", "new_sessions_per_second", "fragment_memory"]),
    (
        "aws",
        &[
            "enabled",
            "route_tables",
            "route_table_tags",
            "routes",
            "elastic_ips",
            "elastic_ip_count",
            "launching_hook",
            "terminating_hook",
        ],
    ),
    (
        "failover",
        &[
            "gateway",
            "key_file",
            "key_parameter",
            "listen",
            "peers",
            "fallback_nat_gateway",
            "heartbeat_interval",
            "dead_after",
            "failback",
            "hold_down",
            "egress_probes",
        ],
    ),
    ("session_log", &["to", "opened", "new_destinations", "lines_per_second"]),
    ("admin", &["listen", "socket", "nat_gateway_price_per_gb"]),
];

/// Those whose value is an array of strings, and nothing else.
const LISTS: &[&str] = &[
    "nat.internal",
    "nat.bypass",
    "aws.route_tables",
    "aws.routes",
    "aws.elastic_ips",
    "failover.egress_probes",
];

/// Whether the value of the key with this path is an array of strings.
pub(super) fn is_list(path: &str) -> bool {
    LISTS.contains(&path)
}

/// What is wrong with a path that should lead to a key, with every key as `spell` writes it.
pub(super) fn check_path(path: &str, spell: impl Fn(&str) -> String) -> Result<(), String> {
    let section = |path: &str| SECTIONS.iter().find(|(section, _)| *section == path);
    if let Some((_, keys)) = section(path).filter(|_| !path.is_empty()) {
        let first = keys.first().map(|name| spell(&join(path, name))).unwrap_or_default();
        return Err(format!("is a section; set its keys, such as {first}"));
    }
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    if section(parent).is_some_and(|(_, keys)| keys.contains(&name)) {
        return Ok(());
    }
    let every = SECTIONS.iter().flat_map(|(section, keys)| keys.iter().map(|name| join(section, name)));
    let likeness = |candidate: &str| match candidate.rsplit_once('.') {
        Some((_, last)) if last == name => 1.0,
        _ => strsim::normalized_damerau_levenshtein(&path.to_ascii_lowercase(), candidate),
    };
    let best = every
        .filter(|candidate| path.len() <= LONGEST && section(candidate).is_none())
        .map(|candidate| (likeness(&candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    Err(match best {
        Some((_, candidate)) => format!("unknown key; did you mean {}?", spell(&candidate)),
        None => "unknown key".to_owned(),
    })
}

/// Notes every key of the document that is not known.
pub(super) fn check(reader: &mut Reader<'_>, root: &Section<'_>) {
    for (path, known) in SECTIONS {
        // Whatever is not a table is noted by whoever reads the section.
        let section = path
            .split('.')
            .filter(|part| !part.is_empty())
            .try_fold(Section::clone(root), |section, part| section.subsection(part));
        if let Some(section) = section {
            check_section(reader, &section, known);
        }
    }
}

/// Notes every key of one table that is not among `known`.
pub(super) fn check_section(reader: &mut Reader<'_>, section: &Section<'_>, known: &[&str]) {
    for (name, place) in section.keys() {
        if known.contains(&name) {
            continue;
        }
        let message = if let Some(nearest) = nearest(section.path(), name, known) {
            format!("unknown key; did you mean {nearest}?")
        } else {
            format!("unknown key; use {}", alternatives(known))
        };
        reader.error(&place, message);
    }
}

/// The full path of the known key that is most like `name`: one of the same section by likeness, or one of
/// another section that has just this name.
fn nearest(section: &str, name: &str, known: &[&str]) -> Option<String> {
    if name.len() > LONGEST {
        return None;
    }
    let best = known
        .iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(name, candidate), *candidate))
        .filter(|(likeness, _)| *likeness >= LIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    if let Some((_, candidate)) = best {
        return Some(join(section, candidate));
    }
    let mut elsewhere = SECTIONS.iter().filter(|(_, keys)| keys.contains(&name));
    elsewhere.next().map(|(path, _)| join(path, name))
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// From this likeness on, of 1, a key is taken for a misspelling.
const LIKE: f64 = 0.5;

/// Longer than any key; nothing beyond is compared.
const LONGEST: usize = 64;
