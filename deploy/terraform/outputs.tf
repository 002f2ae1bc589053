output "public_addresses" {
  description = "What the world sees of each zone's private hosts, where the Elastic IP is made here."
  value       = { for key, address in aws_eip.this : key => address.public_ip }
}

output "allocation_ids" {
  description = "The Elastic IP of each zone."
  value       = local.allocations
}

output "autoscaling_group_names" {
  description = "The group of each zone, for docs/upgrade.md."
  value       = { for key, group in aws_autoscaling_group.this : key => group.name }
}

output "security_group_id" {
  description = "To open more ports, give rules to it."
  value       = aws_security_group.this.id
}

output "role_name" {
  description = "The instances' role."
  value       = aws_iam_role.this.name
}
