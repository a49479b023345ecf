"""moto's server, corrected where moto 5.2.5 answers otherwise than AWS does and
a client would have to be bent to it. Each correction names the deviation.

    python moto_aws.py -H 127.0.0.1 -p PORT
"""

import base64
import hashlib
import threading
import time

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult
from moto.ebs.models import EBSBackend, EBSSnapshot
from moto.ebs.responses import EBSResponse
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.models.elastic_block_store import EBSBackend as VolumeBackend
from moto.ec2.models.instance_types import InstanceType, InstanceTypeBackend
from moto.ec2.responses.amis import AmisResponse
from moto.server import main

BLOCK_SIZE = 512 * 1024
lock = threading.Lock()


class EBSError(ServiceException):
    """moto looks for the service of an error in the name of its module."""

    __module__ = "moto.ebs.exceptions"

# --- EBS direct APIs ---------------------------------------------------------

start_snapshot = EBSResponse.start_snapshot


def start_snapshot_once(self):
    """moto ignores ClientToken, Encrypted and KmsKeyArn, says that blocks have
    512 bytes, and lets EC2 say that the snapshot is completed."""
    token = self._get_param("ClientToken")
    request = self.body
    backend = self.ebs_backend
    with lock:
        tokens = backend.__dict__.setdefault("tokens", {})
        if token in tokens:
            known, result = tokens[token]
            if known != request:
                raise EBSError(
                    "ConflictException", "The client token was used for another request."
                )
            return result
        result = start_snapshot(self)
        tokens[token] = (request, result)
        snapshot_id = result._result["SnapshotId"]
        snapshot = backend.snapshots[snapshot_id]
        snapshot.block_size = BLOCK_SIZE
        snapshot.puts = 0
        ec2 = backend.ec2_backend.snapshots[snapshot_id]
        ec2.status = "pending"
        ec2.kms_key_id = self._get_param("KmsKeyArn")
        ec2.encrypted = bool(self._get_param("Encrypted"))
        result._result["BlockSize"] = BLOCK_SIZE
        result._result["SseType"] = "sse-kms" if ec2.encrypted else "none"
        if ec2.encrypted:
            result._result["KmsKeyArn"] = ec2.kms_key_id or (
                "arn:aws:kms:eu-central-1:123456789012:key/00000000-0000-0000-0000-000000000000"
            )
        return result


EBSResponse.start_snapshot = start_snapshot_once


def pending(backend, snapshot_id):
    """moto answers 500 for a snapshot that it does not know, knows one that EC2
    deleted, and takes blocks of one that is completed."""
    if snapshot_id not in backend.snapshots or snapshot_id not in backend.ec2_backend.snapshots:
        raise EBSError(
            "ResourceNotFoundException", f"The snapshot '{snapshot_id}' does not exist."
        )
    snapshot = backend.snapshots[snapshot_id]
    if snapshot.status != "pending":
        raise EBSError(
            "ValidationException", f"The snapshot '{snapshot_id}' is not in the pending state."
        )
    return snapshot


put_block = EBSSnapshot.put_block


def put_snapshot_block(
    self, snapshot_id, block_index, block_data, checksum, checksum_algorithm, data_length
):
    """moto takes data of any length, and believes every checksum."""
    snapshot = pending(self, snapshot_id)
    digest = base64.b64encode(hashlib.sha256(block_data).digest()).decode()
    if len(block_data) != BLOCK_SIZE or int(data_length) != BLOCK_SIZE:
        raise EBSError("ValidationException", "DataLength must be 524288.")
    if checksum_algorithm != "SHA256" or checksum != digest:
        raise EBSError("ValidationException", "The checksum does not match the data.")
    if not 0 <= int(block_index) < snapshot.volume_size * 2048:
        raise EBSError("ValidationException", "The block lies outside the volume.")
    put_block(snapshot, int(block_index), block_data, checksum, checksum_algorithm, data_length)
    return checksum, checksum_algorithm


EBSBackend.put_snapshot_block = put_snapshot_block

complete_snapshot = EBSResponse.complete_snapshot


def complete_snapshot_checked(self):
    """moto checks neither ChangedBlocksCount nor the checksum of the whole."""
    backend, snapshot_id = self.ebs_backend, self._get_param("SnapshotId")
    if snapshot_id in backend.snapshots and backend.snapshots[snapshot_id].status == "completed":
        return complete_snapshot(self)
    snapshot = pending(backend, snapshot_id)
    count = int(self.headers.get("x-amz-ChangedBlocksCount", -1))
    if count != len(snapshot.blocks):
        raise EBSError(
            "ValidationException",
            f"ChangedBlocksCount is {count}, and {len(snapshot.blocks)} blocks were written.",
        )
    if (checksum := self.headers.get("x-amz-Checksum")) is not None:
        whole = hashlib.sha256()
        for index in sorted(snapshot.blocks):
            whole.update(base64.b64decode(snapshot.blocks[index].checksum))
        if base64.b64encode(whole.digest()).decode() != checksum:
            raise EBSError("ValidationException", "The aggregated checksum does not match.")
    result = complete_snapshot(self)

    def completed():
        # AWS takes its time after the answer.
        time.sleep(0.2)
        if ec2 := backend.ec2_backend.snapshots.get(snapshot_id):
            ec2.status = "completed"

    threading.Thread(target=completed).start()
    return result


EBSResponse.complete_snapshot = complete_snapshot_checked

list_snapshot_blocks = EBSBackend.list_snapshot_blocks


def list_sorted(self, snapshot_id):
    """moto lists blocks in the order in which they were put."""
    snapshot = list_snapshot_blocks(self, snapshot_id)
    snapshot.blocks = dict(sorted(snapshot.blocks.items()))
    return snapshot


EBSBackend.list_snapshot_blocks = list_sorted

# --- EC2: images -------------------------------------------------------------


def refuse(code, message):
    raise EC2ClientError(code, message)


def tags_of(specifications, kind):
    return {
        tag["Key"]: tag["Value"]
        for specification in specifications
        if specification.get("ResourceType") == kind
        for tag in specification.get("Tags", [])
    }


def shape(image, snapshot, **attributes):
    """moto gives every AMI a snapshot of its own making, and forgets the rest."""
    backend = image.ec2_backend
    backend.snapshots.pop(image.ebs_snapshot.id, None)
    image.ebs_snapshot = snapshot
    snapshot.from_ami = image.id
    for name, value in attributes.items():
        setattr(image, name, value)


def register_image(self):
    """moto looks at Name and Description only."""
    backend, get = self.ec2_backend, self._get_param
    with lock:
        name = get("Name")
        if any(i.name == name and i.owner_id == backend.account_id for i in backend.amis.values()):
            refuse("InvalidAMIName.Duplicate", f"AMI name {name} is already in use")
        specifications = get("TagSpecifications", [])
        if any(s.get("ResourceType") != "image" for s in specifications):
            refuse("InvalidParameterValue", "RegisterImage tags images only")
        mappings = get("BlockDeviceMappings", [])
        if len(mappings) != 1 or "Encrypted" in mappings[0]["Ebs"]:
            refuse("InvalidParameterCombination", "one volume, and Encrypted not beside SnapshotId")
        snapshot = backend.snapshots.get(mappings[0]["Ebs"]["SnapshotId"])
        if snapshot is None:
            refuse("InvalidSnapshot.NotFound", "The snapshot does not exist.")
        if snapshot.status != "completed":
            refuse("InvalidParameterValue", "The snapshot is not completed.")
        if len(get("UefiData", "")) > 64000 or get("UefiData") and get("BootMode") != "uefi":
            refuse("InvalidParameterValue", "UefiData")
        image = backend.register_image(name, get("Description", ""))
        shape(
            image, snapshot,
            architecture=get("Architecture", "i386"), boot_mode=get("BootMode"),
            tpm_support=get("TpmSupport"), imds_support=get("ImdsSupport"),
            ena_support=get("EnaSupport"), uefi=get("UefiData"),
            virtualization_type=get("VirtualizationType", "paravirtual"),
            root_device_name=get("RootDeviceName"), root_device_type="ebs",
            mapping=mappings[0],
        )
        image.add_tags(tags_of(specifications, "image"))
        return ActionResult({"ImageId": image.id})


def copy_image(self):
    """moto copies name and description, ignores ClientToken and tags, and
    refuses no name. AWS's copy is pending first."""
    backend, get = self.ec2_backend, self._get_param
    with lock:
        tokens = backend.__dict__.setdefault("copies", {})
        if (token := get("ClientToken")) in tokens:
            return ActionResult({"ImageId": tokens[token]})
        image = backend.copy_image(
            get("SourceImageId"), get("SourceRegion"), get("Name"), get("Description")
        )
        source = ec2_backends[backend.account_id][get("SourceRegion")].amis[get("SourceImageId")]
        specifications = get("TagSpecifications", [])
        snapshot = image.ebs_snapshot
        snapshot.encrypted = source.ebs_snapshot.encrypted or bool(get("Encrypted"))
        snapshot.kms_key_id = get("KmsKeyId")
        image.state = "pending"
        for name in (
            "architecture", "boot_mode", "tpm_support", "imds_support", "ena_support", "uefi",
            "virtualization_type", "root_device_name", "root_device_type", "mapping",
        ):
            setattr(image, name, getattr(source, name, None))
        image.add_tags(tags_of(specifications, "image"))
        snapshot.add_tags(tags_of(specifications, "snapshot"))
        tokens[token] = image.id

        def available():
            time.sleep(0.3)
            if image.state == "pending":
                image.state = "available"

        threading.Thread(target=available).start()
        return ActionResult({"ImageId": image.id})


AmisResponse.register_image = register_image
AmisResponse.copy_image = copy_image


def block_device_mappings(self):
    """moto makes one up."""
    mapping = getattr(self, "mapping", None) or {"DeviceName": self.root_device_name, "Ebs": {}}
    return [
        {
            "DeviceName": mapping["DeviceName"],
            "Ebs": {
                "SnapshotId": self.ebs_snapshot.id,
                "VolumeSize": self.ebs_snapshot.volume.size,
                "DeleteOnTermination": mapping["Ebs"].get("DeleteOnTermination", False),
                "VolumeType": mapping["Ebs"].get("VolumeType", "standard"),
                "Encrypted": self.ebs_snapshot.encrypted,
            },
        }
    ]


Ami.block_device_mappings = property(block_device_mappings)

filter_value = Ami.get_filter_value


def get_filter_value(self, filter_name, method_name=None):
    """moto does not know this filter."""
    if filter_name == "block-device-mapping.snapshot-id":
        return self.ebs_snapshot.id
    return filter_value(self, filter_name, method_name)


Ami.get_filter_value = get_filter_value

delete_snapshot = VolumeBackend.delete_snapshot


def delete_unused_snapshot(self, snapshot_id):
    """moto deletes the snapshot of an AMI that was made by RegisterImage."""
    for image in self.amis.values():
        if image.ebs_snapshot.id == snapshot_id and image.owner_id == self.account_id:
            refuse(
                "InvalidSnapshot.InUse",
                f"The snapshot {snapshot_id} is currently in use by {image.id}",
            )
    return delete_snapshot(self, snapshot_id)


VolumeBackend.delete_snapshot = delete_unused_snapshot

describe_instance_types = InstanceTypeBackend.describe_instance_types


def describe_some_instance_types(self, instance_types=None, filters=None):
    """moto ignores MaxResults, and needs seconds for the list of all."""
    return describe_instance_types(self, instance_types, filters)[:5]


InstanceTypeBackend.describe_instance_types = describe_some_instance_types

# moto does not know this filter.
InstanceType._filter_attributes["nitro-tpm-support"] = ["NitroTpmSupport"]

if __name__ == "__main__":
    main()
