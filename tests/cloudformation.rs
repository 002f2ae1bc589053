//! The template of `deploy/cloudformation`: free of lint, and what it makes at moto, an AWS that others wrote.
//! `make test` installs both.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn template() -> PathBuf {
    root().join("deploy/cloudformation/egret.yaml")
}

/// Runs a program of moto's environment, with `input` on its standard input.
fn python(arguments: &[&str], input: &str) -> Output {
    let interpreter = root().join("target/moto/bin/python3");
    assert!(interpreter.is_file(), "no {}: `make test` installs it, or `make moto`", interpreter.display());
    let mut command = Command::new(interpreter);
    command.args(arguments).current_dir(root());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// What there is after the template has been applied to so many zones of a VPC with these parameters, each time anew.
fn stacks(wanted: &[(usize, Value)]) -> Vec<Value> {
    let wanted: Vec<Value> =
        wanted.iter().map(|(zones, parameters)| json!({ "zones": zones, "parameters": parameters })).collect();
    let output = python(&["tests/deploy/stack.py", template().to_str().unwrap()], &json!(wanted).to_string());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn stack(zones: usize, parameters: Value) -> Value {
    stacks(&[(zones, parameters)]).remove(0)
}

/// One zone, and one forwarded port.
fn one() -> &'static Value {
    static STACK: OnceLock<Value> = OnceLock::new();
    let parameters = json!({
        "ForwardPort1": "5000",
        "ForwardTargets1": "10.0.1.10:5000,ec2-tag:role=api:5000",
        "ForwardFrom": "203.0.113.0/24",
        "PrivateCidr2": "10.1.0.0/16",
        "Config": "# As a NAT gateway.\n[nat]\nprofile = \"aws-nat-gateway\"",
        "ManagedPolicyArn": "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore",
    });
    STACK.get_or_init(|| stack(1, parameters))
}

/// Three zones, of which the third has an Elastic IP that was there before.
fn three() -> &'static Value {
    static STACK: OnceLock<Value> = OnceLock::new();
    let parameters = json!({
        "Name": "gate",
        "Spot": "yes",
        "ElasticIp3": "eipalloc-0123456789abcdef0",
        "PeerKeyParameter": "/network/peer-key",
        "FallbackNatGateway": "nat-0123456789abcdef0",
    });
    STACK.get_or_init(|| stack(3, parameters))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

/// The one file that user data of a zone writes, as it is to be on the instance.
fn config(stack: &Value, zone: usize) -> &str {
    let files = stack["templates"][format!("Template{zone}")]["files"].as_array().unwrap();
    assert_eq!((files.len(), text(&files[0]["path"])), (1, "/etc/egret/egret.toml"));
    text(&files[0]["content"])
}

fn table(stack: &Value, zone: usize) -> toml::Table {
    config(stack, zone).parse().unwrap_or_else(|error| panic!("{error}\n{}", config(stack, zone)))
}

fn strings(value: &toml::Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

fn tags(value: &Value) -> BTreeMap<&str, &str> {
    value.as_array().unwrap().iter().map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect()
}

/// Protocol, first and last port, and from where.
fn rules(stack: &Value) -> BTreeSet<(&str, u64, u64, &str)> {
    let groups = stack["security_groups"].as_array().unwrap();
    assert_eq!(groups.len(), 1);
    let own = text(&groups[0]["GroupId"]);
    let mut rules = BTreeSet::new();
    for rule in groups[0]["IpPermissions"].as_array().unwrap() {
        let port = |key: &str| rule[key].as_u64().unwrap_or_default();
        let mut add = |from| rules.insert((text(&rule["IpProtocol"]), port("FromPort"), port("ToPort"), from));
        for range in rule["IpRanges"].as_array().unwrap() {
            add(text(&range["CidrIp"]));
        }
        for pair in rule["UserIdGroupPairs"].as_array().unwrap() {
            assert_eq!(text(&pair["GroupId"]), own);
            add("the group itself");
        }
        assert_eq!(rule["Ipv6Ranges"], json!([]));
        assert_eq!(rule["PrefixListIds"], json!([]));
    }
    rules
}

#[test]
fn the_template_is_free_of_lint() {
    let template = template();
    let arguments =
        ["target/moto/bin/cfn-lint", "-r", "us-east-1", "eu-west-1", "-t", template.to_str().unwrap()];
    let output = python(&arguments, "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_template_fits_into_one_request() {
    // https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/cloudformation-limits.html
    assert!(std::fs::metadata(template()).unwrap().len() <= 51_200);
}

#[test]
fn the_quick_start_names_parameters_that_there_are() {
    let template = std::fs::read_to_string(template()).unwrap();
    let text = std::fs::read_to_string(root().join("docs/quick-start.md")).unwrap();
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '=' || c == '-' || c == '$'));
    let named = words.filter_map(|word| word.split_once('=')).map(|(name, _)| name);
    let is_ours = |name: &&str| {
        name.starts_with(|c: char| c.is_ascii_uppercase()) && name.contains(|c: char| c.is_ascii_lowercase())
    };
    // Those of a tag, as the shell's tools have them.
    let named: BTreeSet<&str> = named.filter(is_ours).filter(|name| !["Key", "Value"].contains(name)).collect();
    assert!(named.len() > 8, "{named:?}");
    for name in named {
        assert!(template.contains(&format!("\n  {name}:\n    Type: ")), "{name}");
    }
}

#[test]
fn each_zone_is_a_group_of_one_in_its_subnet() {
    for (stack, zones) in [(one(), 1), (three(), 3)] {
        let groups = stack["groups"].as_array().unwrap();
        assert_eq!(groups.len(), zones);
        for (index, letter) in ["a", "b", "c"].into_iter().take(zones).enumerate() {
            let zone = index + 1;
            let subnet = &stack["parameters"][format!("PublicSubnet{zone}")];
            let group = groups.iter().find(|group| group["VPCZoneIdentifier"] == *subnet).unwrap();
            for key in ["MinSize", "MaxSize", "DesiredCapacity"] {
                assert_eq!(group[key], 1, "{key}");
            }
            let template = &stack["templates"][format!("Template{zone}")];
            assert_eq!(group["LaunchTemplate"]["LaunchTemplateId"], template["id"]);
            let name = if zones == 1 { format!("egret-{letter}") } else { format!("gate-{letter}") };
            assert_eq!(tags(&group["Tags"])["egret:gateway"], name);
            let propagated = |tag: &Value| tag["PropagateAtLaunch"] == true;
            assert!(group["Tags"].as_array().unwrap().iter().all(propagated));
            let interface = &template["TagSpecifications"][0];
            assert_eq!(interface["ResourceType"], "network-interface");
            assert_eq!(tags(&interface["Tags"])["egret:gateway"], name);
        }
    }
}

#[test]
fn an_update_of_the_stack_replaces_no_instance() {
    for name in ["Group1", "Group2", "Group3"] {
        let said = three()["attributes"][name].as_array().unwrap();
        assert!(
            said.contains(&json!("Properties")) && !said.contains(&json!("UpdatePolicy")),
            "{name}: {said:?}"
        );
        // For who replaces them, by the names of the groups.
        let outputs = three()["outputs"].as_array().unwrap();
        let output = outputs.iter().find(|output| output["OutputKey"] == format!("{name}Name"));
        let names = three()["groups"].as_array().unwrap().iter().map(|group| &group["AutoScalingGroupName"]);
        let value = &output.unwrap_or_else(|| panic!("no {name}Name"))["OutputValue"];
        assert!(names.into_iter().any(|name| name == value), "{value}");
    }
    assert_eq!(one()["outputs"].as_array().unwrap().iter().filter(|it| is_of_group(it)).count(), 1);
}

fn is_of_group(output: &Value) -> bool {
    text(&output["OutputKey"]).starts_with("Group")
}

#[test]
fn instances_of_a_fleet_have_room_for_its_elastic_ips() {
    let two = stack(2, json!({}));
    for (stack, zones, expected) in [(one(), 1, "t4g.nano"), (&two, 2, "t4g.small"), (three(), 3, "t4g.small")]
    {
        for zone in 1..=zones {
            assert_eq!(stack["templates"][format!("Template{zone}")]["InstanceType"], expected);
        }
    }
    let failover = table(&two, 1)["failover"].clone();
    assert!(failover.get("fallback_nat_gateway").is_none(), "{failover}");
}

#[test]
fn instances_have_tokens_encryption_and_no_key_pair() {
    for template in one()["templates"]
        .as_object()
        .unwrap()
        .values()
        .chain(three()["templates"].as_object().unwrap().values())
    {
        assert_eq!(
            template["MetadataOptions"],
            json!({
                "HttpEndpoint": "enabled",
                "HttpTokens": "required",
                "HttpPutResponseHopLimit": 1,
                "InstanceMetadataTags": "enabled",
            })
        );
        let volumes = template["BlockDeviceMappings"].as_array().unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!(
            (&volumes[0]["Ebs"]["Encrypted"], &volumes[0]["Ebs"]["VolumeType"]),
            (&json!(true), &json!("gp3"))
        );
        let interfaces = template["NetworkInterfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 1);
        assert_eq!(
            (&interfaces[0]["DeviceIndex"], &interfaces[0]["AssociatePublicIpAddress"]),
            (&json!(0), &json!(true))
        );
        // Fixed addresses and further security groups are refused by Auto Scaling.
        for key in ["PrivateIpAddress", "PrivateIpAddresses", "NetworkInterfaceId"] {
            assert!(interfaces[0].get(key).is_none(), "{key}");
        }
        assert!(template.get("KeyName").is_none() && template.get("SecurityGroupIds").is_none());
        assert!(text(&template["IamInstanceProfile"]["Arn"]).contains(":instance-profile/"));
    }
    let market = |stack: &Value| stack["templates"]["Template1"]["InstanceMarketOptions"].clone();
    assert_eq!(market(one()), Value::Null);
    assert_eq!(market(three()), json!({ "MarketType": "spot" }));
}

#[test]
fn only_private_hosts_forwarded_ports_and_peers_get_in() {
    let expected = BTreeSet::from([
        ("-1", 0, 0, "10.0.0.0/16"),
        ("-1", 0, 0, "10.1.0.0/16"),
        ("tcp", 5000, 5000, "203.0.113.0/24"),
    ]);
    assert_eq!(rules(one()), expected);
    let expected = BTreeSet::from([("-1", 0, 0, "10.0.0.0/16"), ("tcp", 7946, 7946, "the group itself")]);
    assert_eq!(rules(three()), expected);
}

#[test]
fn the_role_may_do_what_the_documented_policy_says() {
    let text = std::fs::read_to_string(root().join("docs/iam-policy.json")).unwrap();
    let documented: Value = serde_json::from_str(&text).unwrap();
    // The key's parameter is known here: the template allows that one alone, and only where there are peers.
    let is_of_the_key = |statement: &&Value| statement["Action"].to_string().contains("\"ssm:");
    let documented = documented["Statement"].as_array().unwrap();
    let others: Vec<&Value> = documented.iter().filter(|statement| !is_of_the_key(statement)).collect();
    for stack in [one(), three()] {
        let allowed = stack["role"]["policies"]["egret"]["Statement"].as_array().unwrap();
        assert_eq!(allowed.iter().collect::<Vec<_>>(), others);
        assert_eq!(
            stack["role"]["trust"]["Statement"][0]["Principal"],
            json!({ "Service": "ec2.amazonaws.com" })
        );
    }
    assert_eq!(one()["role"]["policies"].as_object().unwrap().len(), 1);
    assert_eq!(
        three()["role"]["policies"]["peer-key"]["Statement"],
        json!([{
            "Sid": "ReadThePeerKey",
            "Effect": "Allow",
            "Action": "ssm:GetParameter",
            "Resource": "arn:aws:ssm:eu-west-1:123456789012:parameter/network/peer-key",
        }])
    );
    assert_eq!(three()["role"]["policies"].as_object().unwrap().len(), 2);
    let managed = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore";
    assert_eq!(one()["resolved"]["Role"]["ManagedPolicyArns"], json!([managed]));
    assert_eq!(three()["resolved"]["Role"]["ManagedPolicyArns"], Value::Null);
}

#[test]
fn a_zones_configuration_names_its_tables_and_its_address() {
    let made: BTreeSet<&str> =
        three()["addresses"].as_array().unwrap().iter().map(|address| text(&address["AllocationId"])).collect();
    assert_eq!(made.len(), 2, "the third one was there before");
    let mut named = BTreeSet::new();
    for zone in 1..=3 {
        let table = table(three(), zone);
        let tables = strings(&table["aws"]["route_tables"]).join(",");
        assert_eq!(tables, text(&three()["parameters"][format!("RouteTables{zone}")]));
        let addresses = strings(&table["aws"]["elastic_ips"]);
        assert_eq!(addresses.len(), 1);
        named.insert(addresses[0].to_owned());
        let tags = &three()["resolved"][format!("Address{zone}")]["Tags"];
        assert_eq!(tags.is_null(), zone == 3);
    }
    let expected = made.into_iter().chain(["eipalloc-0123456789abcdef0"]).map(str::to_owned).collect();
    assert_eq!(named, expected);
    assert_eq!(tags(&three()["resolved"]["Address2"]["Tags"])["egret:gateway"], "gate-b");
}

#[test]
fn each_of_three_zones_has_the_others_as_its_peers() {
    for (zone, name, heirs) in [
        (1, "gate-a", ["gate-b", "gate-c"]),
        (2, "gate-b", ["gate-c", "gate-a"]),
        (3, "gate-c", ["gate-a", "gate-b"]),
    ] {
        let table = table(three(), zone);
        let failover = table["failover"].as_table().unwrap();
        assert_eq!(failover["gateway"].as_str(), Some(name));
        assert_eq!(failover["key_parameter"].as_str(), Some("/network/peer-key"));
        assert_eq!(failover["listen"].as_str(), Some("0.0.0.0:7946"));
        assert_eq!(failover["fallback_nat_gateway"].as_str(), Some("nat-0123456789abcdef0"));
        let peers = failover["peers"].as_array().unwrap();
        let found: Vec<_> = peers
            .iter()
            .map(|peer| {
                (peer["gateway"].as_str().unwrap().to_owned(), peer["address"].as_str().unwrap().to_owned())
            })
            .collect();
        // The group gives its instances this tag.
        let expected = heirs.map(|heir| (heir.to_owned(), format!("ec2-tag:egret:gateway={heir}:7946")));
        assert_eq!(found, expected);
    }
    assert!(!table(one(), 1).contains_key("failover"));
}

#[test]
fn forwarded_ports_and_further_keys_are_in_the_configuration() {
    let table = table(one(), 1);
    let forwards = table["forward"].as_array().unwrap();
    assert_eq!(forwards.len(), 1);
    assert_eq!(forwards[0]["listen"].as_str(), Some("0.0.0.0:5000"));
    assert_eq!(strings(&forwards[0]["targets"]), ["10.0.1.10:5000", "ec2-tag:role=api:5000"]);
    assert_eq!(strings(&forwards[0]["allow"]), ["203.0.113.0/24"]);
    assert_eq!(table["nat"]["profile"].as_str(), Some("aws-nat-gateway"));
}

#[test]
fn hooks_are_those_that_the_configuration_names() {
    for (stack, zones) in [(one(), 1), (three(), 3)] {
        for zone in 1..=zones {
            let group = &stack["resolved"][format!("Group{zone}")];
            let hooks: Vec<_> = group["LifecycleHookSpecificationList"]
                .as_array()
                .unwrap()
                .iter()
                .map(|hook| (text(&hook["LifecycleHookName"]), text(&hook["LifecycleTransition"])))
                .collect();
            let table = table(stack, zone);
            let named = |key: &str| table["aws"][key].as_str().unwrap().to_owned();
            let (launching, terminating) = (named("launching_hook"), named("terminating_hook"));
            let expected = [
                (launching.as_str(), "autoscaling:EC2_INSTANCE_LAUNCHING"),
                (terminating.as_str(), "autoscaling:EC2_INSTANCE_TERMINATING"),
            ];
            assert_eq!(hooks, expected);
            // A second instance of a zone may come early only where a peer has the gateway meanwhile.
            assert_eq!(group["CapacityRebalance"], json!(zones > 1));
        }
    }
}

#[cfg(feature = "aws")]
#[test]
fn egret_understands_the_configuration_without_a_complaint() {
    for (stack, zone) in [(one(), 1), (three(), 1), (three(), 2), (three(), 3)] {
        let text = config(stack, zone);
        match egret::config::parse(Path::new("egret.toml"), text.as_bytes()) {
            Ok(config) => assert!(config.warnings.is_empty(), "{:?}\n{text}", config.warnings),
            Err(problems) => panic!("{problems}\n{text}"),
        }
    }
}

#[test]
fn parameters_that_do_not_fit_are_refused_before_anything_is_made() {
    let cases = [
        (1, json!({ "Name": "Gate" }), "Name: up to 32 lower-case letters, digits and -"),
        (1, json!({ "PrivateCidr1": "0.0.0.0/0" }), "PrivateCidr1: an IPv4 prefix"),
        (
            1,
            json!({ "RouteTables1": "rtb-01234567, rtb-89abcdef" }),
            "RouteTables1: ids of 1 to 32 route tables",
        ),
        (1, json!({ "ElasticIp1": "203.0.113.7" }), "ElasticIp1: empty, or an allocation id"),
        (1, json!({ "ForwardPort1": "5000" }), "ForwardPort1 needs ForwardTargets1"),
        (
            1,
            json!({ "ForwardPort1": "7946", "ForwardTargets1": "10.0.1.10:80" }),
            "the ports 7946 and 9464 are",
        ),
        (1, json!({ "ForwardTargets1": "10.0.1.10:80\", \"x" }), "ForwardTargets1: targets as in"),
        (
            1,
            json!({ "PublicSubnet2": "subnet-0123456789abcdef0" }),
            "PublicSubnet2 and RouteTables2 go together",
        ),
        (2, json!({ "RouteTables2": "" }), "PublicSubnet2 and RouteTables2 go together"),
        (3, json!({ "PublicSubnet2": "", "RouteTables2": "" }), "a third zone comes after"),
        (2, json!({ "InstanceType": "t4g.nano" }), "with two zones and more, take t4g.small or a larger type"),
        (3, json!({ "InstanceType": "t3.micro" }), "with two zones and more, take t4g.small or a larger type"),
        (
            1,
            json!({ "FallbackNatGateway": "nat-0123456789abcdef0" }),
            "FallbackNatGateway is for two zones and more",
        ),
        (
            1,
            json!({ "ManagedPolicyArn": "AmazonSSMManagedInstanceCore" }),
            "ManagedPolicyArn: empty, or the ARN",
        ),
        (1, json!({ "Config": "[nat]\n\n [ aws ] # ours\n" }), "Config: empty, or whole sections"),
        (2, json!({ "Config": "[failover]\nfailback = \"manual\"" }), "Config: empty, or whole sections"),
        (1, json!({ "Config": "datapath = \"xdp\"\n[nat]" }), "Config: empty, or whole sections"),
        (2, json!({ "PeerKeyParameter": "peer-key" }), "PeerKeyParameter: a parameter's name"),
    ];
    let wanted: Vec<_> = cases.iter().map(|(zones, parameters, _)| (*zones, parameters.clone())).collect();
    let stacks = stacks(&wanted);
    assert_eq!(stacks.len(), cases.len());
    for (stack, (_, _, complaint)) in stacks.iter().zip(cases) {
        let refused = stack["refused"].as_str().unwrap_or_else(|| panic!("not refused: {complaint}"));
        assert!(refused.starts_with(complaint), "{refused}");
    }
}
