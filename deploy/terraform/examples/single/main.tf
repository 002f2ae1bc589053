# One zone: its private subnets reach the internet by one instance, which the group replaces when it dies.

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "public_subnet_id" {
  description = "A subnet whose route table leads to the internet gateway."
  type        = string
}

variable "route_table_ids" {
  description = "The route tables of the private subnets."
  type        = list(string)
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
  tag_route_tables = true

  zones = {
    a = {
      subnet_id       = var.public_subnet_id
      route_table_ids = var.route_table_ids
    }
  }
}

output "public_addresses" {
  description = "What the world sees of the private hosts."
  value       = module.egret.public_addresses
}
