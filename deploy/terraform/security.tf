# One group for all zones, since each instance may come to serve every zone's private hosts.

resource "aws_security_group" "this" {
  name_prefix = "${var.name}-"
  description = "Egret, private hosts and forwarded ports in, everything out"
  vpc_id      = var.vpc_id
  tags        = merge(var.tags, { Name = var.name })

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_vpc_security_group_ingress_rule" "private" {
  for_each = toset(var.private_cidrs)

  security_group_id = aws_security_group.this.id
  description       = "private hosts"
  ip_protocol       = "-1"
  cidr_ipv4         = each.value
}

resource "aws_vpc_security_group_ingress_rule" "forwarded" {
  for_each = merge([
    for name, forward in var.forwards : {
      for cidr in forward.allow : "${name} ${cidr}" => { port = forward.port, cidr = cidr }
    }
  ]...)

  security_group_id = aws_security_group.this.id
  description       = "forwarded"
  ip_protocol       = "tcp"
  from_port         = each.value.port
  to_port           = each.value.port
  cidr_ipv4         = each.value.cidr
}

resource "aws_vpc_security_group_ingress_rule" "peers" {
  count = local.is_fleet ? 1 : 0

  security_group_id            = aws_security_group.this.id
  description                  = "peers"
  ip_protocol                  = "tcp"
  from_port                    = 7946
  to_port                      = 7946
  referenced_security_group_id = aws_security_group.this.id
}

resource "aws_vpc_security_group_egress_rule" "everywhere" {
  security_group_id = aws_security_group.this.id
  description       = "everywhere"
  ip_protocol       = "-1"
  cidr_ipv4         = "0.0.0.0/0"
}
