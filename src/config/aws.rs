//! The section `[aws]`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::reader::{Reader, Section, quoted};
use super::render::{optional, string};
use super::{Aws, RouteTables, Switch, hooks};

/// Reads the section, and checks its keys against each other.
pub(super) fn read(reader: &mut Reader<'_>, root: &Section<'_>) -> Aws {
    let mut aws = Aws::default();
    let Some(section) = &reader.section(root, "aws") else { return aws };
    if let Some(enabled) = reader.switch(section, "enabled") {
        if enabled.value == Switch::On && !cfg!(feature = "aws") {
            reader.error(&enabled.place, "this egret was built without AWS support; use \"auto\" or false");
        }
        aws.enabled = enabled.value;
    }
    aws.hooks = hooks::read(reader, section);
    aws.route_tables = route_tables(reader, section);
    if let Some(destinations) = list(reader, section, "routes", MOST_DESTINATIONS, destination) {
        aws.routes = destinations;
    }
    let pool = list(reader, section, "elastic_ips", MOST_IDS, |text| id("eipalloc-", text));
    aws.elastic_ips = pool.unwrap_or_default();
    if let Some(count) = reader.integer::<u16>(section, "elastic_ip_count", COUNT, "Elastic IPs") {
        aws.elastic_ip_count = count.value.into();
        if aws.elastic_ip_count > aws.elastic_ips.len() {
            let message = format!("more than aws.elastic_ips has ({})", aws.elastic_ips.len());
            reader.error(&count.place, message);
        }
    }
    aws
}

/// Writes what [`read`] reads.
pub(super) fn write(out: &mut String, aws: &Aws) -> std::fmt::Result {
    let enabled = match aws.enabled {
        Switch::Auto => "\"auto\"",
        Switch::On => "true",
        Switch::Off => "false",
    };
    let array = |items: &[String]| {
        let items: Vec<String> = items.iter().map(|item| string(item)).collect();
        format!("[{}]", items.join(", "))
    };
    writeln!(out, "\n[aws]\nenabled = {enabled}")?;
    let (mut ids, mut tags) = (None, None);
    match &aws.route_tables {
        RouteTables::None => {}
        RouteTables::Ids(named) => ids = Some(array(named)),
        RouteTables::Tagged(named) => {
            let pair = |(key, value): (&String, &String)| format!("{} = {}", string(key), string(value));
            tags = Some(format!("{{ {} }}", named.iter().map(pair).collect::<Vec<_>>().join(", ")));
        }
    }
    optional(out, "route_tables", ids, "none")?;
    optional(out, "route_table_tags", tags, "none")?;
    writeln!(out, "routes = {}", array(&aws.routes.iter().map(ToString::to_string).collect::<Vec<_>>()))?;
    let pool = (!aws.elastic_ips.is_empty()).then(|| array(&aws.elastic_ips));
    optional(out, "elastic_ips", pool, "left as they are")?;
    let count = (!aws.elastic_ips.is_empty()).then(|| aws.elastic_ip_count.to_string());
    optional(out, "elastic_ip_count", count, "1, of those in elastic_ips")?;
    hooks::write(out, &aws.hooks)
}

fn route_tables(reader: &mut Reader<'_>, section: &Section<'_>) -> RouteTables {
    let ids = list(reader, section, "route_tables", MOST_IDS, |text| id("rtb-", text));
    let tags = tags(reader, section);
    match (ids, tags) {
        (Some(ids), _) => RouteTables::Ids(ids),
        (None, Some(tags)) => RouteTables::Tagged(tags),
        (None, None) => RouteTables::None,
    }
}

fn tags(reader: &mut Reader<'_>, section: &Section<'_>) -> Option<BTreeMap<String, String>> {
    let (_, place) = section.keys().find(|(name, _)| *name == "route_table_tags")?;
    if section.keys().any(|(name, _)| name == "route_tables") {
        reader.error(&place, "cannot stand beside aws.route_tables; use one of them");
    }
    let table = reader.section(section, "route_table_tags")?;
    let keys: Vec<_> = table.keys().collect();
    if keys.is_empty() || keys.len() > MOST_TAGS {
        let message =
            format!("has {} tags; use from 1 to {MOST_TAGS}, which a table must all have", keys.len());
        reader.error(&place, message);
        return None;
    }
    let mut tags = BTreeMap::new();
    for (key, place) in keys {
        if key.is_empty() || key.chars().count() > TAG_KEY || key.chars().any(char::is_control) {
            reader.error(&place, format!("is not the key of a tag, which has 1 to {TAG_KEY} characters"));
        }
        if let Some(value) = reader.parsed(&table, key, tag_value) {
            tags.insert(key.to_owned(), value.value);
        }
    }
    Some(tags)
}

fn tag_value(text: &str) -> Result<String, String> {
    if text.chars().count() > TAG_VALUE {
        return Err(format!("is too long for the value of a tag, which has at most {TAG_VALUE} characters"));
    }
    Ok(text.to_owned())
}

/// The values of an array without those that are wrong; not empty, and none twice.
fn list<T: Clone + ToString>(
    reader: &mut Reader<'_>,
    section: &Section<'_>,
    key: &str,
    most: usize,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Option<Vec<T>> {
    let array = reader.array(section, key)?;
    if array.value.is_empty() || array.value.len() > most {
        let message = match array.value.len() {
            0 => "empty; name one, or leave the key out".to_owned(),
            count => format!("has {count}; use at most {most}"),
        };
        reader.error(&array.place, message);
        return None;
    }
    let mut first: HashMap<String, String> = HashMap::new();
    let mut values = Vec::new();
    for field in array.value {
        let Some(read) = reader.parsed_field(field, &parse) else { continue };
        let text = read.value.to_string();
        if let Some(other) = first.get(&text) {
            reader.error(&read.place, format!("{text} is already {other}; remove one"));
        } else {
            first.insert(text, read.place.key);
            values.push(read.value);
        }
    }
    Some(values)
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/resource-ids.html>
pub(super) fn id(prefix: &str, text: &str) -> Result<String, String> {
    let digits = text.strip_prefix(prefix).unwrap_or_default();
    let hexadecimal = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !hexadecimal || !matches!(digits.len(), 8 | 17) {
        return Err(format!("{} is not an id such as \"{prefix}0123456789abcdef0\"", quoted(text)));
    }
    Ok(text.to_owned())
}

fn destination(text: &str) -> Result<Ipv4Net, String> {
    let Ok(destination) = text.parse::<Ipv4Net>() else {
        return Err(format!("{} is not an IPv4 prefix; use one such as \"0.0.0.0/0\"", quoted(text)));
    };
    if destination.trunc() != destination {
        return Err(format!("{} has host bits set; use \"{}\"", quoted(text), destination.trunc()));
    }
    Ok(destination)
}

/// What a filter of EC2 may have of values is twice as many.
const MOST_IDS: usize = 100;
/// What a route table holds, unless AWS allows more.
const MOST_DESTINATIONS: usize = 50;
const MOST_TAGS: usize = 10;
const TAG_KEY: usize = 128;
const TAG_VALUE: usize = 256;
/// Private addresses of the largest instances' interfaces.
const COUNT: RangeInclusive<i64> = 1..=50;
