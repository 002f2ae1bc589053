# What the module makes of its inputs, and what it refuses: `terraform test` (1.7 and later), without an account.

mock_provider "aws" {
  mock_data "aws_partition" {
    defaults = { partition = "aws" }
  }
}

variables {
  vpc_id         = "vpc-0123456789abcdef0"
  private_cidrs  = ["10.0.0.0/16"]
  image_id       = "ami-0123456789abcdef0"
  allocation_ids = { a = "eipalloc-0aaaaaaaaaaaaaaaa", b = "eipalloc-0bbbbbbbbbbbbbbbb" }

  zones = {
    a = { subnet_id = "subnet-0aaaaaaaaaaaaaaaa", route_table_ids = ["rtb-0aaaaaaaaaaaaaaaa"] }
    b = { subnet_id = "subnet-0bbbbbbbbbbbbbbbb", route_table_ids = ["rtb-0bbbbbbbbbbbbbbbb"] }
  }
}

run "two_zones_have_room_for_their_elastic_ips" {
  command = plan

  variables {
    fallback_nat_gateway = "nat-0123456789abcdef0"
    managed_policy_arns  = ["arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"]
    config               = "# As a NAT gateway.\n[nat]\nprofile = \"aws-nat-gateway\""
    tags                 = { "company:team" = "network" }
  }

  assert {
    condition     = aws_launch_template.this["a"].instance_type == "t4g.small"
    error_message = "The default of a fleet is not t4g.small."
  }

  assert {
    condition = strcontains(
      base64decode(yamldecode(base64decode(aws_launch_template.this["a"].user_data)).write_files[0].content),
      "]\nfallback_nat_gateway = \"nat-0123456789abcdef0\"\n\n# As a NAT gateway.\n[nat]\n"
    )
    error_message = "The configuration does not name the NAT gateway."
  }

  assert {
    condition     = length(aws_iam_role_policy_attachment.managed) == 1
    error_message = "The managed policy is not the role's."
  }
}

run "one_zone_is_small" {
  command = plan

  variables {
    allocation_ids = { a = "eipalloc-0aaaaaaaaaaaaaaaa" }
    zones          = { a = { subnet_id = "subnet-0aaaaaaaaaaaaaaaa", route_table_ids = ["rtb-0aaaaaaaaaaaaaaaa"] } }
  }

  assert {
    condition     = aws_launch_template.this["a"].instance_type == "t4g.nano"
    error_message = "The default of one zone is not t4g.nano."
  }

  assert {
    condition = !strcontains(
      base64decode(yamldecode(base64decode(aws_launch_template.this["a"].user_data)).write_files[0].content),
      "[failover]"
    )
    error_message = "One zone has no failover."
  }
}

run "one_zone_may_have_the_type_that_it_names" {
  command = plan

  variables {
    instance_type  = "t3.micro"
    allocation_ids = { a = "eipalloc-0aaaaaaaaaaaaaaaa" }
    zones          = { a = { subnet_id = "subnet-0aaaaaaaaaaaaaaaa", route_table_ids = ["rtb-0aaaaaaaaaaaaaaaa"] } }
  }

  assert {
    condition     = aws_launch_template.this["a"].instance_type == "t3.micro"
    error_message = "The type is another one."
  }
}

run "two_zones_on_a_nano_are_refused" {
  command = plan

  variables {
    instance_type = "t4g.nano"
  }

  expect_failures = [aws_launch_template.this]
}

run "one_zone_has_nobody_to_fall_back_from" {
  command = plan

  variables {
    fallback_nat_gateway = "nat-0123456789abcdef0"
    allocation_ids       = { a = "eipalloc-0aaaaaaaaaaaaaaaa" }
    zones                = { a = { subnet_id = "subnet-0aaaaaaaaaaaaaaaa", route_table_ids = ["rtb-0aaaaaaaaaaaaaaaa"] } }
  }

  expect_failures = [aws_launch_template.this]
}

run "a_section_of_the_modules_own_is_refused" {
  command = plan

  variables {
    config = "[nat]\nexternal_mtu = 1500\n  [ aws ]\nelastic_ip_count = 2"
  }

  expect_failures = [var.config]
}

run "keys_without_a_section_are_refused" {
  command = plan

  variables {
    config = "datapath = \"xdp\"\n[nat]\nexternal_mtu = 1500"
  }

  expect_failures = [var.config]
}

run "a_tag_that_the_metadata_service_cannot_tell_is_refused" {
  command = plan

  variables {
    tags = { "company/team" = "network" }
  }

  expect_failures = [var.tags]
}
