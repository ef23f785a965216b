#!/bin/sh
# From a checkout to a nightly job on Dataflow: images, template, accounts, schedule. May be run again, with another TAG.
# Needs PROJECT, REGION, BUCKET (which exists) and gcloud with the right to make what is made here; README.md has the rest.
set -eu
: "${PROJECT:?}" "${REGION:?}" "${BUCKET:?}"
TAG=${TAG:-$(date -u +%Y%m%d-%H%M%S)}
SCHEDULE=${SCHEDULE:-"0 3 * * *"}
TIME_ZONE=${TIME_ZONE:-Etc/UTC}
docker=$(dirname "$0")
images="$REGION-docker.pkg.dev/$PROJECT/kinetics-prep"
workers="kinetics-prep@$PROJECT.iam.gserviceaccount.com"
scheduler="kinetics-prep-scheduler@$PROJECT.iam.gserviceaccount.com"
gcloud() { command gcloud --quiet --project "$PROJECT" "$@"; }

gcloud services enable artifactregistry.googleapis.com cloudbuild.googleapis.com cloudscheduler.googleapis.com \
    compute.googleapis.com dataflow.googleapis.com

gcloud artifacts repositories describe kinetics-prep --location "$REGION" >/dev/null 2>&1 ||
    gcloud artifacts repositories create kinetics-prep --location "$REGION" --repository-format docker
gcloud builds submit "$docker/.." --config "$docker/cloudbuild.yaml" --substitutions "_IMAGES=$images,_TAG=$TAG"
gcloud dataflow flex-template build "gs://$BUCKET/templates/kinetics-prep.json" --image "$images/template:$TAG" \
    --sdk-language PYTHON --metadata-file "$docker/flex_template_metadata.json"

for account in "$workers" "$scheduler"; do
    gcloud iam service-accounts describe "$account" >/dev/null 2>&1 ||
        gcloud iam service-accounts create "${account%%@*}"
done
allow() { # account, role: in the project
    gcloud projects add-iam-policy-binding "$PROJECT" --member "serviceAccount:$1" --role "$2" --condition None >/dev/null
}
allow "$workers" roles/dataflow.worker
allow "$workers" roles/viewer
allow "$scheduler" roles/dataflow.developer
gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --member "serviceAccount:$workers" \
    --role roles/storage.objectAdmin >/dev/null
gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --member "serviceAccount:$scheduler" \
    --role roles/storage.objectViewer >/dev/null
gcloud artifacts repositories add-iam-policy-binding kinetics-prep --location "$REGION" \
    --member "serviceAccount:$workers" --role roles/artifactregistry.reader >/dev/null
gcloud iam service-accounts add-iam-policy-binding "$workers" --member "serviceAccount:$scheduler" \
    --role roles/iam.serviceAccountUser >/dev/null

body=$(mktemp)
trap 'rm -f "$body"' EXIT
sed -e "s|BUCKET|$BUCKET|g" -e "s|PROJECT|$PROJECT|g" -e "s|REGION|$REGION|g" -e "s|:TAG\"|:$TAG\"|" \
    "$docker/launch.json" >"$body"
verb=create headers=--headers
if gcloud scheduler jobs describe kinetics-prep-nightly --location "$REGION" >/dev/null 2>&1; then
    verb=update headers=--update-headers
fi
gcloud scheduler jobs "$verb" http kinetics-prep-nightly --location "$REGION" \
    --schedule "$SCHEDULE" --time-zone "$TIME_ZONE" --http-method POST "$headers" Content-Type=application/json \
    --uri "https://dataflow.googleapis.com/v1b3/projects/$PROJECT/locations/$REGION/flexTemplates:launch" \
    --message-body-from-file "$body" --oauth-service-account-email "$scheduler"
echo "Tonight's run, now: gcloud --project $PROJECT scheduler jobs run kinetics-prep-nightly --location $REGION"
