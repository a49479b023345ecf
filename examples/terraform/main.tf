# An instance from an Attestable AMI, and the key that only it can use.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.40"
    }
  }
}

data "aws_ami" "image" {
  owners = var.ami_owners

  filter {
    name   = "image-id"
    values = [var.ami_id]
  }
}

data "aws_subnet" "private" {
  id = var.subnet_id
}

# Nothing comes in. Out goes TLS only: to KMS, through a NAT gateway or a VPC
# endpoint that the subnet must have, since the instance has no public address.
resource "aws_security_group" "image" {
  name_prefix = "attestable-image-"
  description = "Attestable image: nothing in, TLS out"
  vpc_id      = data.aws_subnet.private.vpc_id

  egress {
    description = "TLS"
    protocol    = "tcp"
    from_port   = 443
    to_port     = 443
    cidr_blocks = ["0.0.0.0/0"]
  }
}

resource "aws_instance" "image" {
  ami                         = data.aws_ami.image.id
  instance_type               = var.instance_type
  subnet_id                   = data.aws_subnet.private.id
  vpc_security_group_ids      = [aws_security_group.image.id]
  iam_instance_profile        = aws_iam_instance_profile.image.name
  associate_public_ip_address = false

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted   = true
    volume_type = "gp3"
  }

  tags = {
    Name = "attestable-image"
  }

  # NitroTPM is a property of the AMI. Without it the instance would run, and
  # could not attest anything.
  lifecycle {
    precondition {
      condition     = data.aws_ami.image.tpm_support == "v2.0" && data.aws_ami.image.boot_mode == "uefi"
      error_message = "This AMI was not registered for NitroTPM: it needs TpmSupport v2.0 and BootMode uefi."
    }
  }
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

# The role has no policy of its own: what it may do, the key's policy says.
resource "aws_iam_role" "image" {
  name_prefix        = "attestable-image-"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

resource "aws_iam_instance_profile" "image" {
  name_prefix = "attestable-image-"
  role        = aws_iam_role.image.name
}
