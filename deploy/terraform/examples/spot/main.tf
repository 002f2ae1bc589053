# Two zones of Spot instances: of one that is to be interrupted, the other takes the gateway over while it still forwards.
#
# Before: aws ssm put-parameter --type SecureString --name /egret/peer-key --value "$(openssl rand -hex 32)"

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "zones" {
  description = "Two zones, by short keys such as a and b."
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
  spot             = true
  tag_route_tables = true

  zones = {
    for key, zone in var.zones : key => {
      subnet_id       = zone.public_subnet_id
      route_table_ids = zone.route_table_ids
    }
  }

  # As a managed NAT gateway forgets idle connections.
  config = <<-EOT
    [nat]
    profile = "aws-nat-gateway"
  EOT
}

output "public_addresses" {
  description = "What the world sees of the private hosts."
  value       = module.egret.public_addresses
}
