package vm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/org/attestable-image-action/internal/measure"
)

// banks lists the banks of the software TPM: those of NitroTPM.
var banks = []measure.Bank{measure.SHA256, measure.SHA384}

// algorithm is a bank's TPM_ALG_ID (TPM 2.0 part 2, section 6.3).
func algorithm(b measure.Bank) tpm2.TPMAlgID {
	if b == measure.SHA384 {
		return tpm2.TPMAlgSHA384
	}
	return tpm2.TPMAlgSHA256
}

// pcrCount is the number of PCRs of a TPM for a PC client.
const pcrCount = 24

// PCRs are the values of all 24 PCRs in each bank.
type PCRs map[measure.Bank][pcrCount][]byte

// TPM 2.0 part 2, section 6.5.2: the command codes that this package looks at.
const (
	ccPCRAllocate           = uint32(tpm2.TPMCCPCRAllocate)
	ccPCREvent              = uint32(tpm2.TPMCCPCREvent)
	ccPCRReset              = uint32(tpm2.TPMCCPCRReset)
	ccStartup               = uint32(tpm2.TPMCCStartup)
	ccEventSequenceComplete = uint32(tpm2.TPMCCEventSequenceComplete)
	ccPCRExtend             = uint32(tpm2.TPMCCPCRExtend)
)

// Sizes of TPM commands and responses, in bytes.
const (
	headerSize = 10 // tag, size, code
	// maxMessage bounds one command or response; swtpm's buffer is 4096.
	maxMessage = 64 << 10
)

// Tags of TPM commands and responses (TPM 2.0 part 2, section 6.9).
const (
	tagNoSessions = uint16(tpm2.TPMSTNoSessions)
	tagSessions   = uint16(tpm2.TPMSTSessions)
)

// stream speaks raw TPM commands over the data channel of swtpm.
type stream struct{ rw io.ReadWriter }

// Send implements transport.TPM.
func (s stream) Send(command []byte) ([]byte, error) {
	if _, err := s.rw.Write(command); err != nil {
		return nil, fmt.Errorf("send a command to swtpm: %w", err)
	}
	response, err := readMessage(s.rw)
	if err != nil {
		return nil, fmt.Errorf("read swtpm's response: %w", err)
	}
	return response, nil
}

// readMessage reads one TPM command or response: both begin with a tag of two
// bytes and the size of the whole, big-endian. It returns io.EOF only when the
// stream ends between two messages.
func readMessage(r io.Reader) ([]byte, error) {
	header := make([]byte, headerSize)
	if n, err := io.ReadFull(r, header); err != nil {
		if n > 0 {
			return nil, io.ErrUnexpectedEOF
		}
		return nil, err
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > maxMessage {
		return nil, fmt.Errorf("TPM message says it has %d bytes; between %d and %d are possible", size, headerSize, maxMessage)
	}
	message := make([]byte, size)
	copy(message, header)
	if _, err := io.ReadFull(r, message[headerSize:]); err != nil {
		return nil, io.ErrUnexpectedEOF
	}
	return message, nil
}

// responseCode is the TPM_RC of a response; 0 is success.
func responseCode(response []byte) uint32 {
	if len(response) < headerSize {
		return ^uint32(0)
	}
	return binary.BigEndian.Uint32(response[6:])
}

// readPCRs asks the TPM for every PCR of every bank. TPM2_PCR_Read returns at
// most eight digests at a time.
func readPCRs(tpm transport.TPM) (PCRs, error) {
	values := PCRs{}
	for _, bank := range banks {
		var pcrs [pcrCount][]byte
		for first := uint(0); first < pcrCount; first += 8 {
			selected := []uint{first, first + 1, first + 2, first + 3, first + 4, first + 5, first + 6, first + 7}
			response, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
				Hash:      algorithm(bank),
				PCRSelect: tpm2.PCClientCompatible.PCRs(selected...),
			}}}}.Execute(tpm)
			if err != nil {
				return nil, fmt.Errorf("read PCRs of bank %s from the software TPM: %w", bank, err)
			}
			if len(response.PCRValues.Digests) != len(selected) {
				return nil, fmt.Errorf("read PCRs of bank %s from the software TPM: got %d values, not %d", bank, len(response.PCRValues.Digests), len(selected))
			}
			for i, digest := range response.PCRValues.Digests {
				pcrs[first+uint(i)] = digest.Buffer
			}
		}
		values[bank] = pcrs
	}
	return values, nil
}

// allocateBanks makes a fresh TPM keep exactly the banks of this package. It
// takes effect at the next initialisation (TPM 2.0 part 3, section 22.5).
func allocateBanks(tpm transport.TPM) error {
	if _, err := (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(tpm); err != nil {
		return fmt.Errorf("start the software TPM: %w", err)
	}
	selections := []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgSHA1, PCRSelect: []byte{0, 0, 0}},
		{Hash: tpm2.TPMAlgSHA512, PCRSelect: []byte{0, 0, 0}},
	}
	for _, bank := range banks {
		selections = append(selections, tpm2.TPMSPCRSelection{Hash: algorithm(bank), PCRSelect: []byte{0xff, 0xff, 0xff}})
	}
	// go-tpm does not know this command: a platform authorisation with the
	// empty password, then the selections.
	body := binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMRHPlatform))
	body = binary.BigEndian.AppendUint32(body, 9)
	body = binary.BigEndian.AppendUint32(body, uint32(tpm2.TPMRSPW))
	body = append(body, 0, 0, 0, 0, 0)
	body = append(body, tpm2.Marshal(tpm2.TPMLPCRSelection{PCRSelections: selections})...)
	response, err := tpm.Send(command(tagSessions, ccPCRAllocate, body))
	if err != nil {
		return err
	}
	// After the header and the parameter size: allocationSuccess, a TPMI_YES_NO.
	if code := responseCode(response); code != 0 || len(response) < 15 || response[14] != 1 {
		return fmt.Errorf("set the PCR banks of the software TPM: response code %#x", code)
	}
	if _, err := (tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}).Execute(tpm); err != nil {
		return fmt.Errorf("shut down the software TPM: %w", err)
	}
	return nil
}

// command puts a TPM command header before body.
func command(tag uint16, code uint32, body []byte) []byte {
	c := binary.BigEndian.AppendUint16(nil, tag)
	c = binary.BigEndian.AppendUint32(c, uint32(headerSize+len(body)))
	c = binary.BigEndian.AppendUint32(c, code)
	return append(c, body...)
}

// Extend is one extension of a PCR, as the TPM was told.
type Extend struct {
	PCR     int
	Digests map[measure.Bank][]byte
}

// errShortCommand marks a command that ends before what it must contain.
var errShortCommand = errors.New("command ends early")

// parseExtend reads the extension that a command made, given the response that
// says it succeeded; ok is false for other commands. TPM2_PCR_Extend carries
// its digests; TPM2_PCR_Event and TPM2_EventSequenceComplete return theirs
// (TPM 2.0 part 3, sections 22.2, 22.3 and 17.7).
func parseExtend(cmd, response []byte) (extend Extend, ok bool, err error) {
	if len(cmd) < headerSize || responseCode(response) != 0 {
		return Extend{}, false, nil
	}
	code := binary.BigEndian.Uint32(cmd[6:])
	if code != ccPCRExtend && code != ccPCREvent && code != ccEventSequenceComplete {
		return Extend{}, false, nil
	}
	if len(cmd) < headerSize+4 {
		return Extend{}, false, errShortCommand
	}
	handle := binary.BigEndian.Uint32(cmd[headerSize:])
	if handle >= pcrCount {
		return Extend{}, false, nil // TPM_RH_NULL: nothing is extended
	}
	var digests []byte
	switch code {
	case ccPCRExtend:
		rest := cmd[headerSize+4:]
		if len(rest) < 4 {
			return Extend{}, false, errShortCommand
		}
		authorisation := binary.BigEndian.Uint32(rest)
		if uint64(authorisation) > uint64(len(rest)-4) {
			return Extend{}, false, errShortCommand
		}
		digests = rest[4+authorisation:]
	default:
		if len(response) < headerSize+4 {
			return Extend{}, false, errShortCommand
		}
		digests = response[headerSize+4:] // behind the parameter size
	}
	values, err := parseDigestValues(digests)
	if err != nil {
		return Extend{}, false, fmt.Errorf("extension of PCR %d: %w", handle, err)
	}
	return Extend{PCR: int(handle), Digests: values}, true, nil
}

// digestSizes are the algorithms of TPML_DIGEST_VALUES that a PCR may have, and
// their lengths in bytes (TCG Algorithm Registry).
var digestSizes = map[tpm2.TPMAlgID]int{
	tpm2.TPMAlgSHA1: 20, tpm2.TPMAlgSHA256: 32, tpm2.TPMAlgSHA384: 48, tpm2.TPMAlgSHA512: 64,
	0x0012: 32, // SM3-256
}

// parseDigestValues reads a TPML_DIGEST_VALUES (TPM 2.0 part 2, section
// 10.9.6): a count, then each algorithm and its digest. Digests of banks that
// the software TPM does not keep are left out.
func parseDigestValues(b []byte) (map[measure.Bank][]byte, error) {
	if len(b) < 4 {
		return nil, errShortCommand
	}
	count := binary.BigEndian.Uint32(b)
	b = b[4:]
	if count > uint32(len(digestSizes)) {
		return nil, fmt.Errorf("%d digests", count)
	}
	values := make(map[measure.Bank][]byte, len(banks))
	for range count {
		if len(b) < 2 {
			return nil, errShortCommand
		}
		alg := tpm2.TPMAlgID(binary.BigEndian.Uint16(b))
		size, known := digestSizes[alg]
		if !known {
			return nil, fmt.Errorf("digest algorithm %#x is not known", uint16(alg))
		}
		if len(b) < 2+size {
			return nil, errShortCommand
		}
		for _, bank := range banks {
			if algorithm(bank) == alg {
				values[bank] = slices.Clone(b[2 : 2+size])
			}
		}
		b = b[2+size:]
	}
	return values, nil
}
