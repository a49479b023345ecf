output "instance_id" {
  description = "The instance."
  value       = aws_instance.image.id
}

output "kms_key_arn" {
  description = "The key that only an attested instance can use."
  value       = aws_kms_key.image.arn
}
