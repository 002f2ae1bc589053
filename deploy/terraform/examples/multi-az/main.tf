# Three zones that stand in for each other, and a port that is forwarded to servers behind them.
#
# Before: aws ssm put-parameter --type SecureString --name /egret/peer-key --value "$(openssl rand -hex 32)"

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "zones" {
  description = "The zones, by short keys such as a, b and c."
  type = map(object({
    public_subnet_id = string
    route_table_ids  = list(string)
  }))
}

variable "image_id" {
  description = "Egret's image in this region."
  type        = string
}

data "aws_vpc" "this" {
  id = var.vpc_id
}

module "egret" {
  source = "../.."

  vpc_id           = data.aws_vpc.this.id
  private_cidrs    = [data.aws_vpc.this.cidr_block]
  image_id         = var.image_id
  instance_type    = "t4g.small"
  tag_route_tables = true

  zones = {
    for key, zone in var.zones : key => {
      subnet_id       = zone.public_subnet_id
      route_table_ids = zone.route_table_ids
    }
  }

  forwards = {
    api = {
      port    = 443
      targets = ["ec2-tag:role=api:8443"]
    }
  }
}

output "public_addresses" {
  description = "What the world sees of the private hosts, and where the port is forwarded."
  value       = module.egret.public_addresses
}
