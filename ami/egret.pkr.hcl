# Amazon machine images of Egret, for both architectures, from Debian's own: docs/ami.md says how to run it.

packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.0"
    }
  }
}

variable "egret_amd64" {
  type        = string
  default     = "target/amd64/egret"
  description = "The program for x86_64."
}

variable "egret_arm64" {
  type        = string
  default     = "target/arm64/egret"
  description = "The program for arm64."
}

variable "version" {
  type        = string
  description = "What the images are named and tagged by, such as 0.1.0."
}

variable "region" {
  type    = string
  default = "eu-west-1"
}

variable "subnet_id" {
  type        = string
  default     = null
  description = "Where it is built: a subnet with a way to Debian's mirrors. Null: the default VPC's."
}

variable "kms_key_id" {
  type        = string
  default     = null
  description = "The key of the image's volume. Null: the account's default for EBS."
}

variable "ssm_agent" {
  type        = bool
  default     = false
  description = "Whether Amazon's agent for Systems Manager is in the image."
}

variable "ssh" {
  type        = bool
  default     = false
  description = "Whether the image has an SSH server, with the instance's key pair."
}

locals {
  built = formatdate("YYYYMMDDhhmm", timestamp())
  programs = {
    amd64 = var.egret_amd64
    arm64 = var.egret_arm64
  }
  tags = {
    Name            = "egret-${var.version}"
    "egret:version" = var.version
    "egret:base"    = "{{ .SourceAMIName }}"
  }
}

source "amazon-ebs" "debian" {
  region                      = var.region
  subnet_id                   = var.subnet_id
  associate_public_ip_address = true
  ssh_username                = "admin"
  ssh_clear_authorized_keys   = true

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = 8
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
  }
  encrypt_boot = true
  kms_key_id   = var.kms_key_id

  # The instance that builds, and those of the image.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  imds_support = "v2.0"
  ena_support  = true

  tags          = local.tags
  snapshot_tags = local.tags
  run_tags      = { Name = "egret-${var.version} is being built" }
}

build {
  source "amazon-ebs.debian" {
    name          = "amd64"
    ami_name      = "egret-${var.version}-amd64-${local.built}"
    instance_type = "t3.small"
    source_ami_filter {
      # Debian's account: https://wiki.debian.org/Cloud/AmazonEC2Image
      owners      = ["136693071363"]
      most_recent = true
      filters = {
        name                = "debian-13-amd64-*"
        root-device-type    = "ebs"
        virtualization-type = "hvm"
      }
    }
  }
  source "amazon-ebs.debian" {
    name          = "arm64"
    ami_name      = "egret-${var.version}-arm64-${local.built}"
    instance_type = "t4g.small"
    source_ami_filter {
      # Debian's account: https://wiki.debian.org/Cloud/AmazonEC2Image
      owners      = ["136693071363"]
      most_recent = true
      filters = {
        name                = "debian-13-arm64-*"
        root-device-type    = "ebs"
        virtualization-type = "hvm"
      }
    }
  }

  provisioner "shell" {
    # The first boot installs, too. cloud-init's exit code says as well what it only warns of.
    inline = [
      "cloud-init status --wait >/dev/null || true",
      "sudo systemctl stop apt-daily.timer apt-daily-upgrade.timer apt-daily.service",
      "mkdir /tmp/egret",
    ]
  }
  provisioner "file" {
    source      = local.programs[source.name]
    destination = "/tmp/egret/egret"
  }
  provisioner "file" {
    sources     = ["${path.root}/../systemd", "${path.root}/files", "${path.root}/provision"]
    destination = "/tmp/egret/"
  }
  provisioner "shell" {
    inline = [
      "sudo env EGRET_SSH=${var.ssh ? "yes" : "no"} EGRET_SSM_AGENT=${var.ssm_agent ? "yes" : "no"} sh /tmp/egret/provision /tmp/egret",
      "sudo apt-get clean",
      "sudo rm -rf /tmp/egret",
    ]
    skip_clean = true
  }
}
