# What Egret may do, to what has the tag egret:gateway: the policy of the documentation, but for the peers' key, of which
# the name is known here.

locals {
  documented = jsondecode(replace(
    file("${path.module}/../../docs/iam-policy.json"),
    "arn:aws:",
    "arn:${data.aws_partition.this.partition}:"
  ))
}

resource "aws_iam_role" "this" {
  name_prefix = "${var.name}-"
  description = "What Egret may do, to what has the tag egret:gateway."

  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Principal = { Service = "ec2.amazonaws.com" }
      Action    = "sts:AssumeRole"
    }]
  })

  tags = var.tags
}

resource "aws_iam_instance_profile" "this" {
  name_prefix = "${var.name}-"
  role        = aws_iam_role.this.name
  tags        = var.tags
}

resource "aws_iam_role_policy" "egret" {
  name = "egret"
  role = aws_iam_role.this.id

  policy = jsonencode({
    Version = local.documented.Version
    Statement = [
      for statement in local.documented.Statement : statement
      if !anytrue([for action in flatten([statement.Action]) : startswith(action, "ssm:")])
    ]
  })
}

resource "aws_iam_role_policy_attachment" "managed" {
  count = length(var.managed_policy_arns)

  role       = aws_iam_role.this.name
  policy_arn = var.managed_policy_arns[count.index]
}

resource "aws_iam_role_policy" "peer_key" {
  count = local.is_fleet ? 1 : 0

  name = "peer-key"
  role = aws_iam_role.this.id

  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [{
        Sid    = "ReadThePeerKey"
        Effect = "Allow"
        Action = "ssm:GetParameter"
        Resource = join(":", [
          "arn",
          data.aws_partition.this.partition,
          "ssm",
          data.aws_region.this.id,
          data.aws_caller_identity.this.account_id,
          "parameter${var.peer_key_parameter}",
        ])
      }],
      [for key in var.peer_key_kms_key == null ? [] : [var.peer_key_kms_key] : {
        Sid       = "DecryptThePeerKey"
        Effect    = "Allow"
        Action    = "kms:Decrypt"
        Resource  = key
        Condition = { StringEquals = { "kms:ViaService" = "ssm.${data.aws_region.this.id}.amazonaws.com" } }
      }]
    )
  })
}
