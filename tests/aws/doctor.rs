//! `egret doctor` on an instance whose metadata service and EC2 are stubs, with each thing broken in turn.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::{Credentials, SharedCredentialsProvider};
use egret::aws::Failure;
use egret::aws::survey::{Associated, Attempt, Survey, WITHOUT_DRY_RUN};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::environment;
use crate::http::{Answer, Request, serve};
use crate::imds::{self, Tree};
use crate::lab::{DEADLINE, Host, INTERNET, Lab, Options, Output, Result, Web};
use crate::vpc::KEY;

const ENI: &str = "eni-0123456789abcdef0";

/// A VPC with a public subnet, which is ours, and two private ones, and what the role may do.
#[derive(Clone, Debug)]
struct World {
    imds: bool,
    tree: Tree,
    ec2: bool,
    /// The actions that the role lacks.
    denied: Vec<&'static str>,
    check: bool,
    association: &'static str,
    public_default: &'static str,
    private_default: &'static str,
    ingress: &'static str,
    egress: &'static str,
    /// Of the fleet, in the Parameter Store; unset if the role may not read it.
    key: Option<&'static str>,
    /// Writes that were really asked for.
    writes: usize,
    /// Of the Elastic IP of the pool, if it has one.
    pool_association: Option<&'static str>,
    /// The actions that were asked for, in whatever way.
    asked: BTreeSet<String>,
}

impl World {
    fn new() -> Self {
        Self {
            imds: true,
            tree: environment::tree(),
            ec2: true,
            denied: Vec::new(),
            check: false,
            association: "<association><publicIp>203.0.113.7</publicIp>\
                 <allocationId>eipalloc-0123456789abcdef0</allocationId></association>",
            public_default: "<item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock>\
                 <gatewayId>igw-0123456789abcdef0</gatewayId><state>active</state></item>",
            private_default: OURS,
            ingress: "<item><ipProtocol>-1</ipProtocol><ipRanges><item><cidrIp>10.0.0.0/16</cidrIp></item>\
                 </ipRanges></item>",
            egress: "<item><ipProtocol>-1</ipProtocol><ipRanges><item><cidrIp>0.0.0.0/0</cidrIp></item>\
                 </ipRanges></item>",
            key: Some(KEY),
            writes: 0,
            pool_association: Some("eipassoc-0123456789abcdef0"),
            asked: BTreeSet::new(),
        }
    }

    fn answer(&mut self, request: &Request) -> Answer {
        if request.header("x-amz-target") == Some("AmazonSSM.GetParameter") {
            self.asked.insert("GetParameter".to_owned());
            return match self.key.filter(|_| !self.denied.contains(&"GetParameter")) {
                Some(key) => Answer::Http(200, "", format!(r#"{{"Parameter": {{"Value": "{key}"}}}}"#)),
                None => Answer::Http(400, "", r#"{"__type": "AccessDeniedException"}"#.to_owned()),
            };
        }
        if !self.ec2 {
            return Answer::Silence;
        }
        let field = |name: &str| {
            let mut fields = request.body.split('&').filter_map(|field| field.split_once('='));
            fields.find(|(known, _)| *known == name).map(|(_, value)| value)
        };
        let action = field("Action").unwrap();
        self.asked.insert(action.to_owned());
        if self.denied.contains(&action) {
            if action.contains("AutoScaling") {
                let body = "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error>\
                            <RequestId>7c6e177f</RequestId></ErrorResponse>";
                return Answer::Http(403, "content-type: text/xml\r\n", body.to_owned());
            }
            return error(403, "UnauthorizedOperation", "Encoded authorization failure message: x7Yz");
        }
        if field("DryRun") == Some("true") {
            return error(412, "DryRunOperation", "Request would have succeeded, but DryRun flag is set.");
        }
        let content = match action {
            "DescribeNetworkInterfaces" => format!(
                "<networkInterfaceSet><item><networkInterfaceId>{ENI}</networkInterfaceId>\
                 <subnetId>subnet-0aaaaaaaaaaaaaaaa</subnetId><sourceDestCheck>{}</sourceDestCheck>\
                 <groupSet><item><groupId>sg-0123456789abcdef0</groupId></item></groupSet>\
                 <privateIpAddressesSet><item><privateIpAddress>10.0.0.11</privateIpAddress>\
                 <primary>false</primary></item><item><privateIpAddress>10.0.0.10</privateIpAddress>\
                 <primary>true</primary>{}</item></privateIpAddressesSet></item></networkInterfaceSet>",
                self.check, self.association
            ),
            "DescribeSubnets" => ["aaaa 10.0.0.0/24", "bbbb 10.0.1.0/24", "cccc 10.0.2.0/24"]
                .map(|subnet| {
                    let (id, cidr) = subnet.split_once(' ').unwrap();
                    let id = id.repeat(4);
                    format!("<item><subnetId>subnet-0{id}</subnetId><cidrBlock>{cidr}</cidrBlock></item>")
                })
                .concat()
                .wrapped("subnetSet"),
            "DescribeRouteTables" => format!(
                "<item><routeTableId>rtb-0aaaaaaaaaaaaaaaa</routeTableId><vpcId>vpc-0a1b2c3d4e5f60718</vpcId>\
                 <associationSet><item><subnetId>subnet-0aaaaaaaaaaaaaaaa</subnetId><main>false</main></item>\
                 </associationSet><routeSet>{LOCAL}{}</routeSet></item>\
                 <item><routeTableId>rtb-0bbbbbbbbbbbbbbbb</routeTableId><vpcId>vpc-0a1b2c3d4e5f60718</vpcId>\
                 <associationSet><item><main>true</main></item></associationSet>\
                 <routeSet>{LOCAL}{}</routeSet></item>",
                self.public_default, self.private_default
            )
            .wrapped("routeTableSet"),
            "DescribeSecurityGroups" => format!(
                "<item><groupId>sg-0123456789abcdef0</groupId><ipPermissions>{}</ipPermissions>\
                 <ipPermissionsEgress>{}</ipPermissionsEgress></item>",
                self.ingress, self.egress
            )
            .wrapped("securityGroupInfo"),
            "DescribeAddresses" => {
                let association =
                    self.pool_association.map(|id| format!("<associationId>{id}</associationId>"));
                format!(
                    "<item><publicIp>203.0.113.7</publicIp><domain>vpc</domain>\
                     <allocationId>eipalloc-0123456789abcdef0</allocationId>{}</item>",
                    association.unwrap_or_default()
                )
                .wrapped("addressesSet")
            }
            "DescribeAutoScalingInstances" => {
                let body = "<DescribeAutoScalingInstancesResponse><DescribeAutoScalingInstancesResult>\
                            <AutoScalingInstances/></DescribeAutoScalingInstancesResult>\
                            </DescribeAutoScalingInstancesResponse>";
                return Answer::Http(200, "content-type: text/xml\r\n", body.to_owned());
            }
            other => {
                self.writes += 1;
                panic!("the doctor makes a change: {other}");
            }
        };
        Answer::Http(
            200,
            "content-type: text/xml\r\n",
            format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\
                 <{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
                 <requestId>59dbff89-35bd-4eac-99ed-be587EXAMPLE</requestId>{content}</{action}Response>"
            ),
        )
    }
}

trait Wrapped {
    fn wrapped(&self, element: &str) -> String;
}

impl Wrapped for String {
    fn wrapped(&self, element: &str) -> String {
        format!("<{element}>{self}</{element}>")
    }
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Response><Errors><Error><Code>{code}</Code>\
         <Message>{message}</Message></Error></Errors><RequestID>ea966190</RequestID></Response>"
    );
    Answer::Http(status, "content-type: text/xml\r\n", body)
}

const LOCAL: &str = "<item><destinationCidrBlock>10.0.0.0/16</destinationCidrBlock><gatewayId>local</gatewayId>\
    <state>active</state></item>";
const OURS: &str = "<item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock>\
    <networkInterfaceId>eni-0123456789abcdef0</networkInterfaceId><state>active</state></item>";

/// The stubs, in the namespace of a host of the lab.
struct Stubs {
    world: Arc<Mutex<World>>,
    environment: Vec<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stubs {
    fn start(host: &Host) -> Result<Self> {
        let mac = imds::MAC.map(|octet| format!("{octet:02x}")).join(":");
        host.run(&format!("ip link set ens5 address {mac}"))?;
        let world = Arc::new(Mutex::new(World::new()));
        let namespace = File::open(format!("/run/netns/{}", host.namespace))?;
        let (stop, stopped) = oneshot::channel();
        let (told, addresses) = mpsc::channel();
        let shared = Arc::clone(&world);
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let of_imds = Arc::clone(&shared);
                let imds = serve(move |request| {
                    let world = of_imds.lock().unwrap();
                    if world.imds { imds::answer(&world.tree, request) } else { Answer::Silence }
                });
                let ec2 = serve(move |request| shared.lock().unwrap().answer(request));
                told.send((imds.await, ec2.await)).unwrap();
                let _ = stopped.await;
            });
        });
        let (imds, ec2) = addresses.recv_timeout(DEADLINE)?;
        let environment = vec![
            "env".to_owned(),
            "HOME=/nonexistent".to_owned(),
            format!("AWS_EC2_METADATA_SERVICE_ENDPOINT=http://{imds}"),
            format!("AWS_ENDPOINT_URL=http://{ec2}"),
        ];
        Ok(Self { world, environment, stop: Some(stop), thread: Some(thread) })
    }

    /// Has the doctor look at a world that is as it should be, but for what `change` does; gives its exit code and
    /// what it found.
    fn examine(&self, host: &Host, change: impl FnOnce(&mut World)) -> Result<(i32, Vec<Value>)> {
        self.examine_with(host, "", change)
    }

    /// The same, with a configuration.
    fn examine_with(
        &self,
        host: &Host,
        toml: &str,
        change: impl FnOnce(&mut World),
    ) -> Result<(i32, Vec<Value>)> {
        let output = self.run(host, toml, "json", change)?;
        let report: Value = serde_json::from_str(&output.stdout)?;
        Ok((output.status.code().unwrap(), report["findings"].as_array().unwrap().clone()))
    }

    fn run(&self, host: &Host, toml: &str, format: &str, change: impl FnOnce(&mut World)) -> Result<Output> {
        {
            let mut world = self.world.lock().unwrap();
            *world = World::new();
            change(&mut world);
        }
        let [config, socket] = ["doctor.toml", "doctor.sock"].map(|name| host.directory.join(name));
        std::fs::write(&config, toml)?;
        let (config, socket) = (config.display().to_string(), socket.display().to_string());
        let to = format!("{INTERNET}:80");
        let mut arguments: Vec<&str> = self.environment.iter().map(String::as_str).collect();
        arguments.extend([env!("CARGO_BIN_EXE_egret"), "doctor", "--config", &config, "--socket", &socket]);
        arguments.extend(["--connect", &to, "--output", format]);
        let begin = Instant::now();
        let output = host.run_for(Duration::from_secs(60), &arguments, "")?;
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
        assert_eq!(self.world.lock().unwrap().writes, 0, "it changed something");
        Ok(output)
    }
}

impl Drop for Stubs {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The findings that are not ok, but for those that hold of every world here.
fn wrong(findings: &[Value]) -> Vec<&Value> {
    findings.iter().filter(|finding| finding["severity"] != "ok" && finding["what"] != "daemon").collect()
}

/// What is done to a world that is well.
type Change = fn(&mut World);

#[test]
fn each_thing_that_is_broken_is_found_and_its_remedy_named() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let stubs = Stubs::start(lab.nat())?;
    let (code, findings) = stubs.examine(lab.nat(), |_| {})?;
    assert_eq!((code, wrong(&findings)), (0, vec![]), "{findings:#?}");
    let said = |what: &str| findings.iter().any(|finding| finding["what"] == what);
    for what in
        ["metadata", "ec2", "permission", "source/dest check", "public address", "internet gateway", "routes"]
    {
        assert!(said(what), "{what}: {findings:#?}");
    }
    let broken: [(&str, i32, &str, &str, &str, Change); 14] = [
        ("imds", 2, "metadata", "error", "--http-put-response-hop-limit 2", |world| world.imds = false),
        ("identity", 2, "metadata", "error", "nat.external_interface", |world| {
            world.tree.remove(&format!("{}/interface-id", imds::INTERFACE));
        }),
        ("role", 2, "credentials", "error", "associate-iam-instance-profile", |world| {
            world.tree.retain(|path, _| !path.starts_with("iam/"));
        }),
        ("api", 2, "ec2", "error", "ec2.eu-west-1.amazonaws.com:443", |world| world.ec2 = false),
        (
            "write",
            2,
            "permission",
            "error",
            "allow ec2:ModifyNetworkInterfaceAttribute on eni-0123456789abcdef0",
            |world| {
                world.denied = vec!["ModifyNetworkInterfaceAttribute"];
            },
        ),
        ("read", 2, "permission", "error", "allow ec2:DescribeNetworkInterfaces", |world| {
            world.denied = vec!["DescribeNetworkInterfaces"];
        }),
        ("look", 1, "permission", "warning", "allow ec2:DescribeSubnets", |world| {
            world.denied = vec!["DescribeSubnets"];
        }),
        (
            "check",
            0,
            "source/dest check",
            "note",
            "--network-interface-id eni-0123456789abcdef0 --no-source-dest-check",
            |world| {
                world.check = true;
            },
        ),
        ("address", 2, "public address", "error", "associate-address", |world| world.association = ""),
        ("lent", 0, "public address", "note", "associate-address", |world| {
            world.association = "<association><publicIp>203.0.113.7</publicIp></association>";
        }),
        (
            "igw",
            2,
            "internet gateway",
            "error",
            "create-route --route-table-id rtb-0aaaaaaaaaaaaaaaa --destination-cidr-block 0.0.0.0/0 --gateway-id",
            |world| world.public_default = "",
        ),
        (
            "route",
            1,
            "routes",
            "warning",
            "create-route --route-table-id rtb-0bbbbbbbbbbbbbbbb --destination-cidr-block 0.0.0.0/0 \
             --network-interface-id eni-0123456789abcdef0",
            |world| world.private_default = "",
        ),
        ("black hole", 2, "routes", "error", "replace-route --route-table-id rtb-0bbbbbbbbbbbbbbbb", |world| {
            world.private_default = "<item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock>\
                <networkInterfaceId>eni-0fedcba9876543210</networkInterfaceId><state>blackhole</state></item>";
        }),
        (
            "group",
            2,
            "security group in",
            "error",
            "authorize-security-group-ingress --group-id sg-0123456789abcdef0 --ip-permissions \
             'IpProtocol=-1,IpRanges=[{CidrIp=10.0.2.0/24}]'",
            |world| {
                world.ingress = "<item><ipProtocol>-1</ipProtocol><ipRanges><item><cidrIp>10.0.0.0/23</cidrIp></item>\
                    </ipRanges></item>";
            },
        ),
    ];
    for (name, code, what, severity, remedy, change) in broken {
        let (exit, findings) = stubs.examine(lab.nat(), change)?;
        let found = findings.iter().any(|finding| {
            finding["what"] == what
                && finding["severity"] == severity
                && finding["remedy"].as_str().is_some_and(|text| text.contains(remedy))
        });
        assert!(found, "{name}: {findings:#?}");
        assert_eq!(exit, code, "{name}: {findings:#?}");
        assert!(wrong(&findings).iter().all(|finding| finding["remedy"].is_string()), "{name}: {findings:#?}");
    }
    Ok(())
}

#[test]
fn subnets_are_named_with_their_table_and_other_gateways_are_left_alone() -> Result {
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let stubs = Stubs::start(lab.nat())?;
    let (_, findings) = stubs.examine(lab.nat(), |world| world.private_default = "")?;
    let wrong = wrong(&findings);
    assert_eq!(wrong.len(), 2, "{findings:#?}");
    for (finding, subnet) in wrong.iter().zip(["bbbb", "cccc"]) {
        let detail = finding["detail"].as_str().unwrap();
        let subnet = format!("subnet-0{}", subnet.repeat(4));
        assert!(detail.contains(&subnet) && detail.contains("rtb-0bbbbbbbbbbbbbbbb"), "{detail}");
    }
    let text = stubs.run(lab.nat(), "", "text", |world| world.private_default = "")?.stdout;
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert_eq!(text.lines().filter(|line| line.contains("$ aws ec2 create-route")).count(), 2, "{text}");
    let (code, findings) = stubs.examine(lab.nat(), |world| {
        world.private_default = "<item><destinationCidrBlock>0.0.0.0/0</destinationCidrBlock>\
            <natGatewayId>nat-0123456789abcdef0</natGatewayId><state>active</state></item>";
    })?;
    assert_eq!(code, 1, "nobody leads to us: {findings:#?}");
    let named = |finding: &Value| finding["detail"].as_str().unwrap().contains("to nat-0123456789abcdef0");
    assert!(findings.iter().any(|finding| finding["severity"] == "ok" && named(finding)), "{findings:#?}");
    Ok(())
}

#[test]
fn the_calls_that_the_configuration_needs_are_tried() -> Result {
    const TOML: &str = "[aws]\nroute_tables = [\"rtb-0bbbbbbbbbbbbbbbb\"]\n\
        elastic_ips = [\"eipalloc-0123456789abcdef0\"]";
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let stubs = Stubs::start(lab.nat())?;
    let (code, findings) = stubs.examine_with(lab.nat(), TOML, |world| world.private_default = "")?;
    assert_eq!(code, 0, "its own route is made by egret itself: {findings:#?}");
    let allowed = |action: &str| {
        let detail = format!("{action} is allowed");
        findings.iter().any(|finding| finding["detail"] == detail.as_str())
    };
    for (action, resource) in [
        ("CreateRoute", "rtb-0bbbbbbbbbbbbbbbb"),
        ("ReplaceRoute", "rtb-0bbbbbbbbbbbbbbbb"),
        ("AssociateAddress", "eipalloc-0123456789abcdef0"),
    ] {
        assert!(allowed(&format!("ec2:{action}")), "{action}: {findings:#?}");
        let (code, findings) = stubs.examine_with(lab.nat(), TOML, |world| world.denied = vec![action])?;
        let remedy = format!("allow ec2:{action} on {resource}");
        let is_named = |finding: &&Value| finding["remedy"].as_str().is_some_and(|text| text.contains(&remedy));
        assert_eq!((code, wrong(&findings).into_iter().filter(is_named).count()), (2, 1), "{findings:#?}");
    }
    Ok(())
}

/// Everything that the role may be needed for.
const EVERYTHING: &str = "[aws]\nroute_tables = [\"rtb-0bbbbbbbbbbbbbbbb\"]\n\
    elastic_ips = [\"eipalloc-0123456789abcdef0\"]\n\
    launching_hook = \"ready\"\nterminating_hook = \"drained\"\n\
    [[forward]]\nname = \"web\"\nlisten = \"0.0.0.0:8080\"\ntargets = [\"ec2-tag:role=web:80\"]\n\
    [failover]\ngateway = \"az-a\"\nkey_parameter = \"/egret/peer-key\"\nlisten = \"10.0.0.10:7946\"\n\
    peers = [{ gateway = \"az-b\", address = \"10.0.3.10:7946\" }]\n";

#[test]
fn each_action_of_the_policy_is_tried_or_said_not_to_have_been() -> Result {
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/iam-policy.json");
    let policy: Value = serde_json::from_str(&std::fs::read_to_string(policy)?)?;
    let lists = policy["Statement"].as_array().unwrap().iter().map(|statement| match &statement["Action"] {
        Value::Array(actions) => actions.clone(),
        action => vec![action.clone()],
    });
    let actions: BTreeSet<String> = lists.flatten().map(|action| action.as_str().unwrap().to_owned()).collect();
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let stubs = Stubs::start(lab.nat())?;
    let (code, findings) = stubs.examine_with(lab.nat(), EVERYTHING, |_| {})?;
    assert_eq!(code, 0, "{findings:#?}");
    let not_tried = |findings: &[Value]| -> BTreeSet<String> {
        let details = findings.iter().filter(|finding| finding["severity"] == "note");
        let details =
            details.filter_map(|finding| finding["detail"].as_str()?.split_once(" is not tried, as "));
        details.map(|(action, _)| action.to_owned()).collect()
    };
    let untried = not_tried(&findings);
    assert_eq!(untried, WITHOUT_DRY_RUN.map(str::to_owned).into());
    let asked = stubs.world.lock().unwrap().asked.clone();
    let asked = actions.iter().filter(|action| asked.contains(action.split_once(':').unwrap().1)).cloned();
    let both: BTreeSet<String> = asked.chain(untried).collect();
    assert_eq!(both, actions, "those that are neither tried nor said not to be are missing on the left");
    // Each that is tried is missed when it is not allowed, by its name.
    for action in actions.iter().filter(|action| !WITHOUT_DRY_RUN.contains(&action.as_str())) {
        let plain: &'static str = action.split_once(':').unwrap().1.to_owned().leak();
        let (code, findings) = stubs.examine_with(lab.nat(), EVERYTHING, |world| world.denied = vec![plain])?;
        let said = |finding: &&Value| {
            finding["what"] == "permission"
                && finding["remedy"].as_str().is_some_and(|text| text.starts_with(&format!("allow {action} ")))
        };
        assert!(code > 0 && findings.iter().any(|finding| said(&finding)), "{action}: {findings:#?}");
    }
    // What there is nothing to try on is not called allowed.
    let (_, findings) = stubs.examine_with(lab.nat(), EVERYTHING, |world| world.pool_association = None)?;
    assert!(not_tried(&findings).contains("ec2:DisassociateAddress"), "{findings:#?}");
    assert!(!stubs.world.lock().unwrap().asked.contains("DisassociateAddress"));
    Ok(())
}

#[test]
fn peer_key_is_looked_for_where_it_is_configured() -> Result {
    const TOML: &str = "[aws]\nroute_tables = [\"rtb-0bbbbbbbbbbbbbbbb\"]\nelastic_ips = [\"eipalloc-0123456789abcdef0\"]\n\
        [failover]\ngateway = \"az-a\"\nkey_parameter = \"/egret/peer-key\"\nlisten = \"0.0.0.0:7946\"\n\
        peers = [{ gateway = \"az-b\", address = \"ec2-tag:egret:gateway=az-b:7946\" }]";
    let lab = Lab::new(Options::default())?;
    let _web = Web::start(lab.internet(), 80)?;
    let stubs = Stubs::start(lab.nat())?;
    for (key, what, severity, said) in [
        (Some(KEY), "peer key", "ok", "read from the parameter /egret/peer-key"),
        (Some("secret"), "peer key", "error", "what /egret/peer-key holds is no key"),
        (
            None,
            "permission",
            "error",
            "does not allow ssm:GetParameter on arn:aws:ssm:eu-west-1:*:parameter/egret/peer-key",
        ),
    ] {
        let (_, findings) = stubs.examine_with(lab.nat(), TOML, |world| world.key = key)?;
        let says = |finding: &&Value| finding["detail"].as_str().is_some_and(|detail| detail.contains(said));
        let found = findings.iter().find(says).unwrap();
        assert_eq!((&found["what"], &found["severity"]), (&what.into(), &severity.into()), "{found}");
        assert!(findings.iter().any(|finding| finding["detail"] == "ec2:DescribeInstances is allowed"));
        assert!(!format!("{findings:?}").contains(KEY), "{findings:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn each_call_is_tried_without_being_made() {
    let world = Arc::new(Mutex::new(World::new()));
    let stub = Arc::clone(&world);
    let address = serve(move |request| stub.lock().unwrap().answer(request)).await;
    let credentials = Credentials::new("AKIDEXAMPLE", "secret", None, None, "test");
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .endpoint_url(format!("http://{address}"))
        .build();
    let survey = Survey::new(&config, Duration::from_secs(5));
    let (table, eni, destination) = ("rtb-0bbbbbbbb".to_owned(), ENI.to_owned(), "0.0.0.0/0".parse().unwrap());
    let allocation = "eipalloc-0123456789abcdef0".to_owned();
    let attempts = [
        Attempt::SwitchCheckOff { eni: eni.clone() },
        Attempt::CreateRoute { table: table.clone(), destination, eni: eni.clone() },
        Attempt::ReplaceRoute { table, destination, eni: eni.clone() },
        Attempt::AssociateAddress { allocation: allocation.clone(), eni },
        Attempt::DisassociateAddress(Associated {
            allocation,
            association: "eipassoc-0123456789abcdef0".to_owned(),
        }),
        Attempt::DescribeAddresses,
        Attempt::DescribeInstances,
    ];
    for attempt in attempts {
        world.lock().unwrap().denied.clear();
        assert_eq!(survey.attempt(&attempt).await, Ok(()), "{attempt:?}");
        let action = attempt.action();
        world.lock().unwrap().denied = vec![action.strip_prefix("ec2:").unwrap()];
        assert_eq!(survey.attempt(&attempt).await, Err(Failure::Unauthorized { action }));
    }
    world.lock().unwrap().ec2 = false;
    let silent = Survey::new(&config, Duration::from_millis(300)).attempt(&Attempt::DescribeAddresses).await;
    assert!(matches!(silent, Err(Failure::Unavailable { .. })), "{silent:?}");
}
