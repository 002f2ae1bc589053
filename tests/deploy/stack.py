"""Makes stacks of a template at moto, and prints as JSON what is there then, or under "refused" why there is none.

usage: stack.py TEMPLATE < [{"zones": 1, "parameters": {...}}, ...]

Each is made in an account of its own. The VPC, its subnets and the route tables are there beforehand, as users have them. What moto does not make of a template
(lifecycle hooks, tags of Elastic IPs) is shown as moto resolves the template's functions, under "resolved". Moto looks at
neither patterns nor rules, so that is done here, but for rules about what AWS knows of a parameter's value.
"""

import ast
import base64
import json
import os
import re
import sys

import boto3
import yaml
from cfnlint.decode import cfn_yaml
from moto import mock_aws
from moto.cloudformation.models import cloudformation_backends
from moto.cloudformation.parsing import clean_json
from moto.core import DEFAULT_ACCOUNT_ID

REGION = "eu-west-1"


def site(ec2, zones):
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    parameters = {"VpcId": vpc, "PrivateCidr1": "10.0.0.0/16", "ImageId": "ami-0123456789abcdef0"}
    for number in range(1, zones + 1):
        zone = REGION + "abc"[number - 1]
        subnet = ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=zone)
        tables = [ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"] for _ in range(2)]
        parameters[f"PublicSubnet{number}"] = subnet["Subnet"]["SubnetId"]
        parameters[f"RouteTables{number}"] = ",".join(tables)
    return parameters


def assumed(zones):
    """Parameters as those of a site, of things that are nowhere."""
    parameters = {"VpcId": "vpc-01234567", "PrivateCidr1": "10.0.0.0/16", "ImageId": "ami-01234567"}
    for number in range(1, zones + 1):
        parameters |= {f"PublicSubnet{number}": "subnet-01234567", f"RouteTables{number}": "rtb-01234567,rtb-89abcdef"}
    return parameters


def holds(rule, values):
    """Whether a condition of a rule is true of parameters."""
    ((function, operands),) = rule.items()
    match function:
        case "Fn::And":
            return all(holds(operand, values) for operand in operands)
        case "Fn::Or":
            return any(holds(operand, values) for operand in operands)
        case "Fn::Not":
            return not holds(operands[0], values)
        case "Fn::Equals":
            one, other = (values[it["Ref"]] if isinstance(it, dict) else it for it in operands)
            return one == other
        case "Fn::Contains":
            return values[operands[1]["Ref"]] in operands[0]
        case "Fn::EachMemberIn":
            return True
    raise ValueError(function)


def complaint(template, given):
    """What CloudFormation would say of these parameters, if anything."""
    values = {name: str(it.get("Default", "")) for name, it in template["Parameters"].items()} | given
    for name, it in template["Parameters"].items():
        value = values[name]
        if "AllowedPattern" in it and not re.fullmatch(it["AllowedPattern"], value):
            return f"{name}: {it['ConstraintDescription']}"
        if "AllowedValues" in it and value not in it["AllowedValues"]:
            return f"{name}: one of {it['AllowedValues']}"
        if it["Type"] == "Number" and not it["MinValue"] <= int(value) <= it["MaxValue"]:
            return f"{name}: from {it['MinValue']} to {it['MaxValue']}"
    for rule in template["Rules"].values():
        if "RuleCondition" not in rule or holds(rule["RuleCondition"], values):
            for assertion in rule["Assertions"]:
                if not holds(assertion["Assert"], values):
                    return assertion["AssertDescription"]
    return None


def user_data(data):
    cloud_config = yaml.safe_load(base64.b64decode(data["UserData"]))
    return [{**file, "content": base64.b64decode(file["content"]).decode()} for file in cloud_config["write_files"]]


def role(iam, name):
    documents = {
        policy: iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]
    }
    return {
        "trust": iam.get_role(RoleName=name)["Role"]["AssumeRolePolicyDocument"],
        # Moto writes some as Python does.
        "policies": {it: ast.literal_eval(text) if isinstance(text, str) else text for it, text in documents.items()},
    }


@mock_aws
def make(template, wanted):
    ec2, iam, groups, stacks = (
        boto3.client(service, region_name=REGION) for service in ("ec2", "iam", "autoscaling", "cloudformation")
    )
    parameters = site(ec2, wanted["zones"]) | wanted["parameters"]
    stacks.create_stack(
        StackName="gate",
        TemplateBody=template,
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = cloudformation_backends[DEFAULT_ACCOUNT_ID][REGION].get_stack("gate")
    summaries = stacks.list_stack_resources(StackName="gate")["StackResourceSummaries"]
    # One whose condition does not hold has no name there.
    made = {it["LogicalResourceId"]: it for it in summaries if it["LogicalResourceId"]}
    written = stack.resource_map._resource_json_map
    resolved = {name: clean_json(written[name].get("Properties", {}), stack.resource_map) for name in made}
    templates = {}
    for name, it in made.items():
        if it["ResourceType"] == "AWS::EC2::LaunchTemplate":
            versions = ec2.describe_launch_template_versions(LaunchTemplateId=it["PhysicalResourceId"])
            data = versions["LaunchTemplateVersions"][-1]["LaunchTemplateData"]
            templates[name] = {**data, "id": it["PhysicalResourceId"], "files": user_data(data)}
    return {
        "parameters": parameters,
        "made": {name: it["ResourceType"] for name, it in made.items()},
        "templates": templates,
        "groups": groups.describe_auto_scaling_groups()["AutoScalingGroups"],
        "security_groups": [
            group for group in ec2.describe_security_groups()["SecurityGroups"] if group["GroupName"] != "default"
        ],
        "addresses": ec2.describe_addresses()["Addresses"],
        "role": role(iam, made["Role"]["PhysicalResourceId"]),
        "attributes": {name: list(written[name]) for name in made},
        "resolved": resolved,
        "outputs": stacks.describe_stacks(StackName="gate")["Stacks"][0].get("Outputs", []),
    }


def main(template, wanted):
    refused = complaint(cfn_yaml.loads(template), assumed(wanted["zones"]) | wanted["parameters"])
    return {"refused": refused} if refused else make(template, wanted)


if __name__ == "__main__":
    # Of images moto knows thousands, and reads them for seconds.
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", MOTO_EC2_LOAD_DEFAULT_AMIS="false")
    with open(sys.argv[1], encoding="utf-8") as file:
        template = file.read()
    print(json.dumps([main(template, wanted) for wanted in json.load(sys.stdin)], default=str))
