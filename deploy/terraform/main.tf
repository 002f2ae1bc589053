# NAT instances for a VPC that is there already: in each zone an Auto Scaling group of one, which keeps the zone's routes
# and its Elastic IP; two and more zones stand in for each other.

data "aws_caller_identity" "this" {}

data "aws_partition" "this" {}

data "aws_region" "this" {}

locals {
  keys     = sort(keys(var.zones))
  gateways = { for key in local.keys : key => "${var.name}-${key}" }
  is_fleet = length(local.keys) > 1

  instance_type = coalesce(var.instance_type, local.is_fleet ? "t4g.small" : "t4g.nano")

  # For each zone the others, those after it first: in this order they take its gateway over.
  heirs = {
    for index, key in local.keys : key => [
      for other in concat(
        slice(local.keys, index + 1, length(local.keys)),
        slice(local.keys, 0, index)
      ) : local.gateways[other]
    ]
  }

  allocations = merge(var.allocation_ids, { for key, address in aws_eip.this : key => address.id })
}

resource "aws_eip" "this" {
  for_each = setsubtract(keys(var.zones), keys(var.allocation_ids))

  domain = "vpc"

  tags = merge(var.tags, {
    Name            = local.gateways[each.key]
    "egret:gateway" = local.gateways[each.key]
  })
}

resource "aws_ec2_tag" "route_table" {
  for_each = var.tag_route_tables ? merge([
    for key, zone in var.zones : {
      for index, table in zone.route_table_ids : "${key} ${index}" => { id = table, gateway = local.gateways[key] }
    }
  ]...) : {}

  resource_id = each.value.id
  key         = "egret:gateway"
  value       = each.value.gateway
}

resource "aws_launch_template" "this" {
  for_each = var.zones

  name_prefix            = "${local.gateways[each.key]}-"
  image_id               = var.image_id
  instance_type          = local.instance_type
  update_default_version = true

  user_data = base64encode(join("\n", [
    "#cloud-config",
    yamlencode({
      write_files = [{
        path     = "/etc/egret/egret.toml"
        encoding = "b64"
        content = base64encode(templatefile("${path.module}/egret.toml.tftpl", {
          route_tables         = each.value.route_table_ids
          allocation           = local.allocations[each.key]
          gateway              = local.gateways[each.key]
          heirs                = local.heirs[each.key]
          peer_key_parameter   = var.peer_key_parameter
          fallback_nat_gateway = var.fallback_nat_gateway
          forwards             = var.forwards
          config               = var.config
        }))
      }]
    }),
  ]))

  iam_instance_profile {
    arn = aws_iam_instance_profile.this.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "enabled"
  }

  # Besides the gateway's Elastic IP a public address of its own, by which the instance reaches EC2's API.
  network_interfaces {
    device_index                = 0
    associate_public_ip_address = true
    delete_on_termination       = true
    security_groups             = [aws_security_group.this.id]
  }

  block_device_mappings {
    device_name = var.root_device

    ebs {
      volume_type           = "gp3"
      volume_size           = var.root_gigabytes
      encrypted             = true
      delete_on_termination = true
    }
  }

  dynamic "instance_market_options" {
    for_each = var.spot ? ["spot"] : []

    content {
      market_type = instance_market_options.value
    }
  }

  tag_specifications {
    resource_type = "network-interface"

    tags = merge(var.tags, {
      Name            = local.gateways[each.key]
      "egret:gateway" = local.gateways[each.key]
    })
  }

  tag_specifications {
    resource_type = "volume"
    tags          = merge(var.tags, { Name = local.gateways[each.key] })
  }

  tags = merge(var.tags, { Name = local.gateways[each.key] })

  lifecycle {
    # An instance may have to hold the Elastic IPs of all zones, and a private address that none of them comes to: its own
    # public address is at that one, and would not come back. These types have two private addresses on an interface.
    precondition {
      condition = !local.is_fleet || !contains(
        ["t2.nano", "t2.micro", "t3.nano", "t3.micro", "t3a.nano", "t3a.micro", "t4g.nano", "t4g.micro"],
        local.instance_type
      )
      error_message = "With two zones and more, take t4g.small or a larger type, which has room for their Elastic IPs."
    }

    precondition {
      condition     = local.is_fleet || var.fallback_nat_gateway == null
      error_message = "fallback_nat_gateway is for two zones and more."
    }
  }
}

# A new launch template changes nothing by itself: replace instances zone by zone, as docs/upgrade.md says. Terraform
# would refresh all groups at once.
resource "aws_autoscaling_group" "this" {
  for_each = var.zones

  name_prefix               = "${local.gateways[each.key]}-"
  min_size                  = 1
  max_size                  = 1
  desired_capacity          = 1
  vpc_zone_identifier       = [each.value.subnet_id]
  health_check_type         = "EC2"
  health_check_grace_period = 120

  # Before its time only where a peer has the gateway meanwhile: two instances would claim one zone's routes.
  capacity_rebalance = local.is_fleet && var.spot

  launch_template {
    id      = aws_launch_template.this[each.key].id
    version = aws_launch_template.this[each.key].latest_version
  }

  initial_lifecycle_hook {
    name                 = "egret-ready"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_LAUNCHING"
    heartbeat_timeout    = 300
    default_result       = "CONTINUE"
  }

  # Longer than connections to forwarded ports may go on (deregistration_delay, 5 minutes), but no more than it takes: an
  # instance that is dead keeps its Elastic IP for as long.
  initial_lifecycle_hook {
    name                 = "egret-drained"
    lifecycle_transition = "autoscaling:EC2_INSTANCE_TERMINATING"
    heartbeat_timeout    = 420
    default_result       = "CONTINUE"
  }

  dynamic "tag" {
    for_each = merge(var.tags, {
      Name            = local.gateways[each.key]
      "egret:gateway" = local.gateways[each.key]
    })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  # At the end instances drain, for which the hook lets them have the time.
  timeouts {
    delete = "20m"
  }

  # The first thing that an instance does needs what the role allows, and the last one needs a way out.
  depends_on = [
    aws_ec2_tag.route_table,
    aws_iam_role_policy.egret,
    aws_iam_role_policy.peer_key,
    aws_iam_role_policy_attachment.managed,
    aws_vpc_security_group_egress_rule.everywhere,
    aws_vpc_security_group_ingress_rule.forwarded,
    aws_vpc_security_group_ingress_rule.peers,
    aws_vpc_security_group_ingress_rule.private,
  ]
}
