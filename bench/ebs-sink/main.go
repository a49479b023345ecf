// Command ebs-sink stands in for EC2 and the EBS direct APIs where moto is too
// slow to measure a client: it takes blocks as fast as they come and forgets
// them, and answers the few calls of EC2 that an upload makes. It checks what
// costs nothing: lengths, counts, and the checksum of the whole.
//
//	ebs-sink [-latency 20ms] ADDRESS
//
// GET /counts tells how often each call was made, as "CALLS OPERATION" lines,
// and begins to count anew.
package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const blockSize = 512 << 10

// sink keeps no more of a snapshot than the digests of its blocks.
type sink struct {
	latency time.Duration

	mu        sync.Mutex
	counts    map[string]int
	snapshots map[string]map[int]string // digests in base64, by block
}

func main() {
	latency := flag.Duration("latency", 0, "time that every block takes besides its transfer")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: ebs-sink [-latency TIME] ADDRESS")
		os.Exit(2)
	}
	s := &sink{latency: *latency, counts: map[string]int{}, snapshots: map[string]map[int]string{}}
	server := &http.Server{Addr: flag.Arg(0), Handler: s, ReadHeaderTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

func (s *sink) count(operation string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[operation]++
}

// ServeHTTP answers one call.
func (s *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/counts":
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, operation := range slices.Sorted(maps.Keys(s.counts)) {
			fmt.Fprintf(w, "%d %s\n", s.counts[operation], operation)
		}
		clear(s.counts)
	case r.Method == http.MethodPut && len(parts) == 4 && parts[0] == "snapshots" && parts[2] == "blocks":
		s.put(w, r, parts[1], parts[3])
	case r.Method == http.MethodPost && r.URL.Path == "/snapshots":
		s.start(w, r)
	case r.Method == http.MethodPost && len(parts) == 3 && parts[1] == "completion":
		s.complete(w, r, parts[2])
	case r.Method == http.MethodPost && r.URL.Path == "/":
		s.ec2(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *sink) put(w http.ResponseWriter, r *http.Request, snapshot, block string) {
	s.count("PutSnapshotBlock")
	n, err := io.Copy(io.Discard, r.Body)
	index, notANumber := strconv.Atoi(block)
	s.mu.Lock()
	digests := s.snapshots[snapshot]
	if digests != nil {
		digests[index] = r.Header.Get("X-Amz-Checksum")
	}
	s.mu.Unlock()
	if err != nil || n != blockSize || notANumber != nil || digests == nil {
		refuse(w, fmt.Sprintf("block %q of %d bytes", block, n))
		return
	}
	time.Sleep(s.latency)
	w.Header().Set("X-Amz-Checksum", r.Header.Get("X-Amz-Checksum"))
	w.Header().Set("X-Amz-Checksum-Algorithm", "SHA256")
	answer(w, http.StatusCreated, map[string]any{})
}

func (s *sink) start(w http.ResponseWriter, r *http.Request) {
	s.count("StartSnapshot")
	var in struct{ VolumeSize int64 }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, err.Error())
		return
	}
	s.mu.Lock()
	id := fmt.Sprintf("snap-%017x", len(s.snapshots)+1)
	s.snapshots[id] = map[int]string{}
	s.mu.Unlock()
	answer(w, http.StatusCreated, map[string]any{
		"SnapshotId": id, "BlockSize": blockSize, "VolumeSize": in.VolumeSize, "Status": "pending", "OwnerId": "123456789012", "StartTime": time.Now().Unix(),
	})
}

func (s *sink) complete(w http.ResponseWriter, r *http.Request, snapshot string) {
	s.count("CompleteSnapshot")
	s.mu.Lock()
	digests := s.snapshots[snapshot]
	s.mu.Unlock()
	whole := sha256.New()
	for _, index := range slices.Sorted(maps.Keys(digests)) {
		digest, err := base64.StdEncoding.DecodeString(digests[index])
		if err != nil {
			refuse(w, err.Error())
			return
		}
		whole.Write(digest)
	}
	if sum := base64.StdEncoding.EncodeToString(whole.Sum(nil)); r.Header.Get("X-Amz-Changedblockscount") != strconv.Itoa(len(digests)) || r.Header.Get("X-Amz-Checksum") != sum {
		refuse(w, fmt.Sprintf("%d blocks with the checksum %s were put", len(digests), sum))
		return
	}
	answer(w, http.StatusAccepted, map[string]any{"Status": "completed"})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client is gone otherwise
}

func refuse(w http.ResponseWriter, why string) {
	w.Header().Set("X-Amzn-Errortype", "ValidationException")
	answer(w, http.StatusBadRequest, map[string]string{"message": why})
}

func (s *sink) ec2(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	form, notAForm := url.ParseQuery(string(body))
	if err != nil || notAForm != nil {
		http.Error(w, "no form", http.StatusBadRequest)
		return
	}
	action := form.Get("Action")
	s.count(action)
	w.Header().Set("Content-Type", "text/xml")
	content := "<return>true</return>"
	switch action {
	case "DescribeInstanceTypes":
		content = "<instanceTypeSet><item><instanceType>m7i.large</instanceType></item></instanceTypeSet>"
	case "DescribeSnapshots":
		content = "<snapshotSet/>"
		if id := form.Get("SnapshotId.1"); id != "" {
			content = "<snapshotSet><item><snapshotId>" + id + "</snapshotId><status>completed</status></item></snapshotSet>"
		}
	case "RegisterImage":
		content = "<imageId>ami-0123456789abcdef0</imageId>"
	case "DescribeImages":
		content = "<imagesSet/>"
		if form.Get("ImageId.1") != "" {
			content = "<imagesSet><item><imageId>ami-0123456789abcdef0</imageId><imageState>available</imageState></item></imagesSet>"
		}
	}
	fmt.Fprintf(w, `<%sResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>1</requestId>%s</%[1]sResponse>`, action, content)
}
