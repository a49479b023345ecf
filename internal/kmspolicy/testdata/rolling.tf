# Only instances that booted these images may use the key:
#   measurements-1.json
#   measurements-2.json
#   ghcr.io/octo-org/image@sha256:5555555555555555555555555555555555555555555555555555555555555555
data "aws_iam_policy_document" "attestable_image" {
  statement {
    sid    = "Administer"
    effect = "Allow"
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
      identifiers = ["arn:aws:iam::111122223333:role/key-admin"]
    }
  }

  statement {
    sid    = "Encrypt"
    effect = "Allow"
    actions = [
      "kms:DescribeKey",
      "kms:Encrypt",
    ]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:aws:iam::111122223333:role/seal"]
    }
  }

  statement {
    sid    = "UseWhenAttested1"
    effect = "Allow"
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
      identifiers = ["arn:aws:iam::111122223333:role/service/image"]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR2"
      values   = ["518923b0f955d08da077c96aaba522b9decede61c599cea6c41889cfbea4ae4d50529d96fe4d1afdafb65e7f95bf23c4"]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR4"
      values = [
        "4a7777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777",
        "4b7777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777",
      ]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR12"
      values   = ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR13"
      values   = ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"]
    }
  }

  statement {
    sid    = "UseWhenAttested2"
    effect = "Allow"
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
      identifiers = ["arn:aws:iam::111122223333:role/service/image"]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR7"
      values   = ["7a7777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777777"]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR12"
      values   = ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"]
    }

    condition {
      test     = "StringEqualsIgnoreCase"
      variable = "kms:RecipientAttestation:NitroTPMPCR13"
      values   = ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"]
    }
  }
}

resource "aws_kms_key" "attestable_image" {
  description         = "Used by attested instances only"
  enable_key_rotation = true
  policy              = data.aws_iam_policy_document.attestable_image.json
}
