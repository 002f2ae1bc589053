variable "name" {
  description = "Gateways are called by it, with a hyphen and the zone's key. Another one for each use in a VPC."
  type        = string
  default     = "egret"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,31}$", var.name))
    error_message = "Use up to 32 lower-case letters, digits and -, the first one a letter."
  }
}

variable "vpc_id" {
  description = "The VPC. It has an internet gateway."
  type        = string
}

variable "zones" {
  description = <<-EOT
    One to three zones, by short keys such as a, b and c: the public subnet of the instance, and the route tables of the
    zone's private subnets. These need the tag egret:gateway (of any value), which the role's policy asks for.
  EOT
  type = map(object({
    subnet_id       = string
    route_table_ids = list(string)
  }))

  validation {
    condition     = length(var.zones) >= 1 && length(var.zones) <= 3
    error_message = "Name one to three zones."
  }

  validation {
    condition     = alltrue([for key in keys(var.zones) : can(regex("^[a-z0-9]{1,16}$", key))])
    error_message = "Use up to 16 lower-case letters and digits as a zone's key."
  }

  validation {
    condition = alltrue([
      for zone in values(var.zones) : length(zone.route_table_ids) >= 1 && length(zone.route_table_ids) <= 32
    ])
    error_message = "A zone has 1 to 32 route tables."
  }
}

variable "tag_route_tables" {
  description = "Whether to give the route tables the tag. Not if they are resources of yours in Terraform: tag them there."
  type        = bool
  default     = false
}

variable "allocation_ids" {
  description = "Elastic IPs of yours, by the zone's key, for zones that are not to have new ones; tagged as route tables are."
  type        = map(string)
  default     = {}
}

variable "private_cidrs" {
  description = "Where the private hosts are; the VPC's own prefix will do."
  type        = list(string)

  validation {
    condition     = length(var.private_cidrs) >= 1 && alltrue([for cidr in var.private_cidrs : can(cidrnetmask(cidr))])
    error_message = "Name one and more IPv4 prefixes."
  }
}

variable "image_id" {
  description = "The image, in this account and region."
  type        = string

  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.image_id))
    error_message = "Use an image's id."
  }
}

variable "instance_type" {
  description = "Of the image's architecture; see docs/sizing.md. Default, t4g.nano, with two zones and more t4g.small."
  type        = string
  default     = null
}

variable "spot" {
  description = "Spot instances. With two zones and more, a replacement comes before the interrupted one ends."
  type        = bool
  default     = false
}

variable "root_device" {
  description = "The image's root device, as it was registered."
  type        = string
  default     = "/dev/xvda"
}

variable "root_gigabytes" {
  description = "The size of the root volume, at least that of the image."
  type        = number
  default     = 8
}

variable "managed_policy_arns" {
  description = "Managed policies for the role besides its own, such as AmazonSSMManagedInstanceCore's for Session Manager."
  type        = list(string)
  default     = []
}

variable "peer_key_parameter" {
  description = "With two zones and more, the SecureString of Parameter Store that holds the peers' key."
  type        = string
  default     = "/egret/peer-key"

  validation {
    condition     = can(regex("^(/[A-Za-z0-9_.-]+)+$", var.peer_key_parameter))
    error_message = "Use a parameter's name that begins with a slash."
  }
}

variable "peer_key_kms_key" {
  description = "The ARN of the KMS key by which that is encrypted, if it is not the account's own for Parameter Store."
  type        = string
  default     = null
}

variable "fallback_nat_gateway" {
  description = "With two zones and more, a NAT gateway of the VPC that has the routes while no instance is well."
  type        = string
  default     = null

  validation {
    condition     = var.fallback_nat_gateway == null || can(regex("^nat-[0-9a-f]{8,17}$", var.fallback_nat_gateway))
    error_message = "Use a NAT gateway's id."
  }
}

variable "forwards" {
  description = "TCP ports that are forwarded to private servers, by name; targets as in docs/forwarding.md."
  type = map(object({
    port    = number
    targets = list(string)
    allow   = optional(list(string), ["0.0.0.0/0"])
  }))
  default = {}

  validation {
    condition = alltrue([
      for forward in values(var.forwards) :
      forward.port >= 1 && forward.port <= 65535 && !contains([7946, 9464], forward.port)
    ])
    error_message = "Use ports from 1 to 65535 but 7946 and 9464, which are Egret's own."
  }

  validation {
    condition     = alltrue([for forward in values(var.forwards) : length(forward.targets) >= 1])
    error_message = "A forwarded port has one and more targets."
  }
}

variable "config" {
  description = "More of the configuration, in TOML. Whole sections such as [nat]; [aws] and [failover] are written here."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(\\s*(#[^\n]*\n\\s*)*\\[|\\s*$)", var.config))
    error_message = "Write whole sections, from their headings on."
  }

  validation {
    condition     = !can(regex("(?m)^\\s*\\[\\s*(aws|failover)\\s*\\]", var.config))
    error_message = "The sections [aws] and [failover] are written by the module."
  }
}

variable "tags" {
  description = "Further tags of everything that is made. Keys have neither spaces nor slashes: instances are told them."
  type        = map(string)
  default     = {}

  # EC2 starts no instance of which a tag's key cannot be part of an address of the metadata service.
  validation {
    condition = alltrue([
      for key in keys(var.tags) :
      can(regex("^[0-9A-Za-z_+=,.@:-]{1,255}$", key)) && !contains([".", "..", "_index"], key)
    ])
    error_message = "Use letters, digits and _+=,.@:- in the keys of tags, and not the names ., .. and _index."
  }
}
