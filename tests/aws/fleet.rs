//! As much of EC2 and of Auto Scaling as tells of instances.

use std::collections::BTreeMap;

use crate::http::{Answer, Request};

pub const OUR_VPC: &str = "vpc-0a1b2c3d4e5f60718";
pub const OURSELVES: &str = "i-0123456789abcdef0";
pub const GROUP: &str = "gateways";

#[derive(Debug, Default)]
pub struct Fleet {
    pub instances: Vec<Instance>,
    /// How many instances are in one answer; 0: all.
    pub page: usize,
    /// Where the Auto Scaling group has us.
    pub state: Option<&'static str>,
    pub fault: Option<Fault>,
    /// Actions asked for, in their order.
    pub calls: Vec<String>,
    /// Lifecycle actions that were completed: hook, group, instance, result.
    pub completed: Vec<[String; 4]>,
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    Closed,
    Silence,
    Rubbish,
    /// Of the action: status and code.
    Error(&'static str, u16, &'static str),
}

#[derive(Clone, Debug)]
pub struct Instance {
    pub vpc: &'static str,
    pub state: &'static str,
    pub address: String,
    pub tag: (&'static str, &'static str),
}

impl Instance {
    /// A running one of our VPC.
    pub fn new(address: &str, key: &'static str, value: &'static str) -> Self {
        Self { vpc: OUR_VPC, state: "running", address: address.to_owned(), tag: (key, value) }
    }

    /// As EC2 filters: backslashes take the meaning from wildcards, of which no test has one that means something.
    fn passes(&self, name: &str, value: &str) -> bool {
        match name {
            "vpc-id" => self.vpc == value,
            "instance-state-name" => self.state == value,
            _ => {
                let key = name.strip_prefix("tag:").unwrap_or_else(|| panic!("unexpected filter {name}"));
                let literal = value.replace("\\\\", "\0").replace('\\', "").replace('\0', "\\");
                let is_pattern = value.replace("\\*", "").contains('*');
                self.tag.0 == key && (self.tag.1 == literal || is_pattern)
            }
        }
    }
}

impl Fleet {
    pub fn answer(&mut self, request: &Request) -> Answer {
        let form = form(&request.body);
        let action = form["Action"].as_str();
        self.calls.push(action.to_owned());
        match self.fault {
            Some(Fault::Closed) => return Answer::Closed,
            Some(Fault::Silence) => return Answer::Silence,
            Some(Fault::Rubbish) => return Answer::Http(200, "", "<html>out of order".to_owned()),
            Some(Fault::Error(of, status, code)) if of == action => return error(status, code),
            _ => {}
        }
        match action {
            // What a daemon asks in any case.
            "DescribeNetworkInterfaces" => {
                let eni = &form["NetworkInterfaceId.1"];
                Answer::Http(
                    200,
                    XML,
                    format!(
                        "<{action}Response xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\"><networkInterfaceSet>\
                         <item><networkInterfaceId>{eni}</networkInterfaceId><vpcId>{OUR_VPC}</vpcId>\
                         <sourceDestCheck>false</sourceDestCheck><privateIpAddressesSet><item>\
                         <privateIpAddress>10.0.0.10</privateIpAddress><primary>true</primary></item>\
                         </privateIpAddressesSet></item></networkInterfaceSet></{action}Response>"
                    ),
                )
            }
            "DescribeInstances" => self.instances(&form),
            "DescribeAutoScalingInstances" => {
                assert_eq!(form["InstanceIds.member.1"], OURSELVES);
                let member = self.state.map(|state| {
                    format!(
                        "<member><InstanceId>{OURSELVES}</InstanceId>\
                         <AutoScalingGroupName>{GROUP}</AutoScalingGroupName>\
                         <AvailabilityZone>eu-west-1a</AvailabilityZone><LifecycleState>{state}</LifecycleState>\
                         <HealthStatus>HEALTHY</HealthStatus><ProtectedFromScaleIn>false</ProtectedFromScaleIn>\
                         </member>"
                    )
                });
                let members = member.unwrap_or_default();
                scaling(action, &format!("<AutoScalingInstances>{members}</AutoScalingInstances>"))
            }
            "CompleteLifecycleAction" => {
                let field = |name: &str| form[name].clone();
                self.completed.push(
                    ["LifecycleHookName", "AutoScalingGroupName", "InstanceId", "LifecycleActionResult"]
                        .map(field),
                );
                self.state = match self.state {
                    Some("Pending:Wait") => Some("InService"),
                    Some("Terminating:Wait") => Some("Terminating:Proceed"),
                    other => panic!("nothing waits: {other:?}"),
                };
                scaling(action, "")
            }
            other => panic!("unexpected action {other}"),
        }
    }

    fn instances(&self, form: &BTreeMap<String, String>) -> Answer {
        let filters = (1..10).map_while(|number| {
            let name = form.get(&format!("Filter.{number}.Name"))?;
            Some((name.as_str(), form[&format!("Filter.{number}.Value.1")].as_str()))
        });
        let filters: Vec<_> = filters.collect();
        assert!(filters.iter().any(|(name, _)| *name == "vpc-id"), "of one VPC: {filters:?}");
        let found =
            self.instances.iter().filter(|found| filters.iter().all(|(name, value)| found.passes(name, value)));
        let found: Vec<_> = found.collect();
        let from: usize = form.get("NextToken").map_or(0, |token| token.parse().unwrap());
        let page = if self.page == 0 { found.len() } else { self.page };
        let until = (from + page).min(found.len());
        let item = |Instance { vpc, address, .. }: &&Instance| {
            format!(
                "<item><reservationId>r-1</reservationId><instancesSet><item><instanceId>i-1</instanceId>\
                 <privateIpAddress>{address}</privateIpAddress><vpcId>{vpc}</vpcId></item></instancesSet></item>"
            )
        };
        let items = found[from..until].iter().map(item).collect::<Vec<_>>().concat();
        let next = if until < found.len() { format!("<nextToken>{until}</nextToken>") } else { String::new() };
        Answer::Http(
            200,
            XML,
            format!(
                "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
                 <reservationSet>{items}</reservationSet>{next}</DescribeInstancesResponse>"
            ),
        )
    }
}

fn scaling(action: &str, result: &str) -> Answer {
    let body = format!(
        "<{action}Response xmlns=\"http://autoscaling.amazonaws.com/doc/2011-01-01/\"><{action}Result>{result}\
         </{action}Result><ResponseMetadata><RequestId>7c6e177f</RequestId></ResponseMetadata></{action}Response>"
    );
    Answer::Http(200, XML, body)
}

/// Good for both services: one looks for `Errors`, the other for `Error` in an `ErrorResponse`.
fn error(status: u16, code: &str) -> Answer {
    let error = format!("<Error><Code>{code}</Code><Message>because</Message></Error>");
    let body = if code == "ValidationError" || code == "AccessDenied" {
        format!("<ErrorResponse>{error}<RequestId>7c6e177f</RequestId></ErrorResponse>")
    } else {
        format!("<Response><Errors>{error}</Errors><RequestID>7c6e177f</RequestID></Response>")
    };
    Answer::Http(status, XML, body)
}

/// `a=b&c=%3A`
fn form(body: &str) -> BTreeMap<String, String> {
    let fields = body.split('&').filter_map(|field| field.split_once('='));
    fields.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
        bytes.extend(part[2..].bytes());
    }
    String::from_utf8(bytes).unwrap()
}

const XML: &str = "content-type: text/xml\r\n";
