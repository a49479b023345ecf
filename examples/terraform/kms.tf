# The key policy that `attestable-image kms-policy --format terraform` prints,
# with this module's role, and with the conditions as a variable: they are the
# output kms-conditions of the action, or what `kms-policy` prints.

data "aws_iam_policy_document" "key" {
  statement {
    sid = "Administer"
    actions = [
      "kms:CancelKeyDeletion",
      "kms:CreateAlias",
      "kms:DeleteAlias",
      "kms:DescribeKey",
      "kms:DisableKey",
      "kms:DisableKeyRotation",
      "kms:EnableKey",
      "kms:EnableKeyRotation",
      "kms:GetKeyPolicy",
      "kms:GetKeyRotationStatus",
      "kms:GetPublicKey",
      "kms:ListGrants",
      "kms:ListKeyPolicies",
      "kms:ListKeyRotations",
      "kms:ListResourceTags",
      "kms:PutKeyPolicy",
      "kms:RevokeGrant",
      "kms:RotateKeyOnDemand",
      "kms:ScheduleKeyDeletion",
      "kms:TagResource",
      "kms:UntagResource",
      "kms:UpdateAlias",
      "kms:UpdateKeyDescription",
    ]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = var.key_administrators
    }
  }

  # Sealing a secret for the instances reveals nothing, and needs no attestation.
  dynamic "statement" {
    for_each = length(var.key_encrypters) > 0 ? [var.key_encrypters] : []

    content {
      sid       = "Encrypt"
      actions   = ["kms:DescribeKey", "kms:Encrypt"]
      resources = ["*"]

      principals {
        type        = "AWS"
        identifiers = statement.value
      }
    }
  }

  # One statement for each condition: a block that held all of them would also
  # let in their mixtures.
  dynamic "statement" {
    for_each = var.kms_conditions

    content {
      sid = "UseWhenAttested${statement.key + 1}"
      actions = [
        "kms:Decrypt",
        "kms:DeriveSharedSecret",
        "kms:GenerateDataKey",
        "kms:GenerateDataKeyPair",
        "kms:GenerateRandom",
      ]
      resources = ["*"]

      principals {
        type        = "AWS"
        identifiers = [aws_iam_role.image.arn]
      }

      dynamic "condition" {
        for_each = jsondecode(statement.value)["StringEqualsIgnoreCase"]

        content {
          test     = "StringEqualsIgnoreCase"
          variable = condition.key
          values   = flatten([condition.value])
        }
      }
    }
  }
}

resource "aws_kms_key" "image" {
  description         = "Used by attested instances only"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.key.json
}
