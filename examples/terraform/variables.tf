variable "ami_id" {
  description = "The AMI: output ami-id of the action register-ami."
  type        = string

  validation {
    condition     = startswith(var.ami_id, "ami-")
    error_message = "The identifier of an AMI begins with ami-."
  }
}

variable "ami_owners" {
  description = "Accounts that the AMI may belong to."
  type        = list(string)
  default     = ["self"]
}

variable "subnet_id" {
  description = "Private subnet to start the instance in."
  type        = string
}

variable "instance_type" {
  description = "A Nitro instance type of the AMI's architecture."
  type        = string
  default     = "m7i.large"
}

variable "key_administrators" {
  description = "ARNs of the roles that administer the key. They cannot use it, but they can change its policy. The role that applies this must be among them."
  type        = list(string)

  validation {
    condition     = length(var.key_administrators) > 0
    error_message = "Without an administrator nobody could ever change the key."
  }
}

variable "key_encrypters" {
  description = "ARNs of the roles that may encrypt with the key, to seal a secret for the instances. They cannot decrypt."
  type        = list(string)
  default     = []
}

variable "kms_conditions" {
  description = "Condition blocks, as JSON: output kms-conditions of the action, or each block that kms-policy prints. One for each generation of the image that runs."
  type        = list(string)

  validation {
    condition     = length(var.kms_conditions) > 0
    error_message = "Without a condition nobody could use the key."
  }

  # A block without keys would let in every instance that has the role.
  validation {
    condition = alltrue([
      for block in var.kms_conditions :
      anytrue([
        for bound in [["2", "4", "12", "13"], ["7", "12", "13"]] :
        alltrue([
          for pcr in bound :
          can(jsondecode(block)["StringEqualsIgnoreCase"]["kms:RecipientAttestation:NitroTPMPCR${pcr}"])
        ])
      ])
    ])
    error_message = "Each condition must bind PCR 2, 4, 12 and 13, or PCR 7, 12 and 13, as kms-policy prints it."
  }
}
